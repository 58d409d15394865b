"""Chats to token ids and labels by a model's own processor, for families without code of their own.

The label mask is proven for every chat: the ids of the chat up to an answer, with a generation prompt, must be a prefix
of the ids of the whole chat; the answer must end with a token that ends generation; and what lies between must decode
to the row's answer. A template that does not pass is refused.

To count tokens nothing is decoded: a blank image of each size that a file's header says goes through the processor
once, and what that writes for it stands for all images of that size. The ids that come of it are compared with those
of the processor for the first chat of each number of images, and in training for every batch (see processed.py).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.formats import Row
from finetune.encoding.encoded import Compact, Encoded, runs_of
from finetune.encoding.special_tokens import refuse_specials, special_tokens
from finetune.errors import FinetuneError
from finetune.media.bank import SizedImages
from modelfiles import counted
from modelfiles.folder.model_folder import ModelFolder

KEPT = 10_000  # chats that are kept, as datasets ask the same of many images
LOCK = Lock()  # a tokenizer keeps its padding in itself, and threads share it


@dataclass(frozen=True)
class ProcessedChat(Encoded):
    """A chat whose inputs its processor makes. positions: none, the model makes its own.

    text: the chat as the template renders it; prompt: the same up to the last answer; question: what was asked last.
    """

    text: str = ""
    prompt: str = ""
    question: str = ""

    def until(self, start: int) -> ProcessedChat:
        return replace(self, ids=self.ids[:start], labelled=self.labelled[:start], text=self.prompt)


class ProcessorEncoder:
    """Encodes chats with a model folder's processor. Raises FinetuneError if the folder lacks what that needs."""

    def __init__(self, folder: ModelFolder, processor: Any, bank: SizedImages) -> None:
        self.folder, self.processor, self.bank = folder, processor, bank
        self.eos = np.array(folder.eos_token_ids)
        if not len(self.eos):
            raise FinetuneError(f"{folder.path} names no eos_token_id; its answers would have no end.")
        found = folder.config.get("image_token_id", folder.config.get("image_token_index"))
        # Gemma's templates write the token that begins an image.
        tokens = [getattr(processor, name, None) for name in ("image_token", "boi_token")]
        self.placeholders = {token for token in tokens if isinstance(token, str)}
        if type(found) is not int or not self.placeholders:
            raise FinetuneError(f"{folder.path} does not say which token stands for an image; use another model.")
        self.image_token_id, self.video_token_id = found, -1
        self.specials = [*special_tokens(processor.tokenizer), *self.placeholders]
        self._written: dict[tuple[str, tuple[int, int]], str] = {}
        self._compared: set[int] = set()  # numbers of images
        self._done: dict[tuple[str, tuple[tuple[int, int], ...]], ProcessedChat] = {}

    def encode(self, rows: Sequence[Row]) -> list[ProcessedChat]:
        """Encodes whole chats. Raises FinetuneError naming the row."""
        return [self._encode(row) for row in rows]

    def encode_prompt(self, rows: Sequence[Row]) -> list[ProcessedChat]:
        """Encodes chats without their last answer, ready for the model to give it."""
        return [chat.until(chat.last_answer) for chat in self.encode(rows)]

    def compact(self, rows: Sequence[Row]) -> list[Compact | FinetuneError]:
        """Each chat as it is kept, or what is wrong with it."""
        found: list[Compact | FinetuneError] = []
        for row in rows:
            try:
                found.append(_compact(self._encode(row)))
            except FinetuneError as error:
                found.append(error)
        return found

    def compact_prompts(self, rows: Sequence[Row]) -> list[Compact]:
        """Each chat without its last answer as it is kept. Raises FinetuneError naming the row."""
        return [_compact(chat) for chat in self.encode_prompt(rows)]

    def place(self, chat: Compact, source: str) -> ProcessedChat:
        """The chat that `compact` made so."""
        ids = np.asarray(chat.ids, np.int64)
        return ProcessedChat(ids, chat.labelled, np.empty((3, 0)), chat.media, source, *chat.more)

    def added_tokens(self, index: int) -> int:
        """How many more tokens an image has than a compact chat: none, its processor writes them."""
        return 0

    def with_an_empty_bank(self) -> ProcessorEncoder:
        """An encoder like this one, with a bank of its own."""
        return ProcessorEncoder(self.folder, self.processor, self.bank.empty())

    def add_media(self, row: Row) -> tuple[int, ...]:
        """The bank's indices of the row's images, whose chat is proven. Raises FinetuneError."""
        return self._encode(row).images

    def refuse_specials(self, row: Row) -> None:
        """Text that holds a special token would become that token. Raises FinetuneError."""
        refuse_specials(row, self.specials)

    def _encode(self, row: Row) -> ProcessedChat:
        if row.videos:
            self._refuse(row, "videos are for the Qwen-VL families")
        images = tuple(self.bank.add(path, row.source) for path in row.images)
        sizes = tuple(self.bank.sizes[index] for index in images)
        key = json.dumps([row.messages, row.tools, row.unlabelled], ensure_ascii=False), sizes
        if key not in self._done:
            if len(self._done) == KEPT:
                self._done.clear()
            self._done[key] = self._prove(row, sizes)
        return replace(self._done[key], images=images, source=row.source)

    def _prove(self, row: Row, sizes: Sequence[tuple[int, int]]) -> ProcessedChat:
        """The ids of a chat with images of these sizes, and their label mask."""
        self.refuse_specials(row)
        if row.tools or any(m["role"] == "tool" or "tool_calls" in m for m in row.messages):
            self._refuse(row, "tools and tool calls are for the Qwen-VL families")
        text = self._render(row, len(row.messages), prompt=False)
        placeholder = max(self.placeholders, key=text.count)
        if text.count(placeholder) != len(sizes):
            self._refuse(row, f"its chat template shows {text.count(placeholder)} of {counted(len(sizes), 'image')}")
        for part in (part for message in row.messages for part in message["content"] if part["type"] == "text"):
            if part["text"].strip() not in text:
                self._refuse(row, f"its chat template does not show all of the text, such as {part['text'][:40]!r}")
        ids = self._ids(row, text, placeholder, sizes)
        if sizes and not (ids == self.image_token_id).any():
            self._refuse(row, "its processor gives an image no tokens")
        if len(sizes) not in self._compared:
            blanks = [Image.new("RGB", size) for size in sizes]
            theirs = processed(self.processor, [row.source], [text], [blanks])["input_ids"][0]
            if not np.array_equal(theirs, ids):
                self._refuse(
                    row,
                    f"its processor makes {counted(len(sizes), 'image')} of a chat into other tokens than one alone",
                )
            self._compared.add(len(sizes))
        labelled = np.zeros(len(ids), dtype=bool)
        prompt = ""
        for number, message in enumerate(row.messages):
            if message["role"] == "assistant":
                prompt = self._render(row, number, prompt=True)
                before = self._ids(row, prompt, placeholder, sizes)
                answer = self._answer(row, number, ids, before)
                labelled[answer] = number not in row.unlabelled
        question = "".join(part.get("text", "") for part in row.messages[-2]["content"]).strip()
        return ProcessedChat(ids, labelled, np.empty((3, 0)), (), "", text, prompt, question)

    def _answer(self, row: Row, number: int, ids: Any, before: Any) -> slice:
        """Where the message's answer is in the ids, given those before it; with its end and the blank after it."""
        start = len(before)
        if not np.array_equal(ids[:start], before):
            self._refuse(
                row,
                "its chat template makes the chat before an answer into other tokens when the rest follows, so answers "
                "cannot be located; train on single turns",
            )
        ends = np.flatnonzero(np.isin(ids[start:], self.eos))
        end = start + int(ends[0]) if len(ends) else len(ids)
        answer = "".join(part.get("text", "") for part in row.messages[number]["content"])
        decode = self.processor.tokenizer.decode
        found = decode(ids[start:end], clean_up_tokenization_spaces=False)
        if not len(ends) or found.strip() != answer.strip():
            self._refuse(
                row,
                f"its chat template does not end answers with a token that ends generation (eos_token_id "
                f"{', '.join(map(str, self.eos))}): where the answer is {answer.strip()[:40]!r} it has "
                f"{found.strip()[:60]!r}",
            )
        blank = end + 1 < len(ids) and decode(ids[end + 1 : end + 2]).isspace()
        return slice(start, end + 1 + blank)

    def _render(self, row: Row, messages: int, prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self.processor.apply_chat_template(
                row.messages[:messages], tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            self._refuse(row, f"its chat template does not take this chat: {_first_line(error)}")
        return str(text)

    def _ids(self, row: Row, text: str, placeholder: str, sizes: Sequence[tuple[int, int]]) -> Any:
        """[L] ids of a rendered chat, its first images written as the processor writes them."""
        pieces = text.split(placeholder)
        written = pieces[0]
        for size, piece in zip(sizes, pieces[1:], strict=False):
            written += self._image(row, placeholder, size) + piece
        settings = plain(self.processor, text)
        with LOCK:
            return np.array(self.processor.tokenizer(written, **settings)["input_ids"], dtype=np.int64)

    def _image(self, row: Row, placeholder: str, size: tuple[int, int]) -> str:
        """What the processor writes for an image of this size."""
        if (placeholder, size) not in self._written:
            image = [Image.new("RGB", size)]
            alone = processed(self.processor, [row.source], [placeholder], [image], add_special_tokens=False)
            self._written[placeholder, size] = self.processor.tokenizer.decode(
                alone["input_ids"][0], clean_up_tokenization_spaces=False, spaces_between_special_tokens=False
            )
        return self._written[placeholder, size]

    def _refuse(self, row: Row, why: str) -> Any:
        raise FinetuneError(f"{row.source}: {self.folder.name} ({self.folder.model_type}) cannot be trained: {why}.")


def _compact(chat: ProcessedChat) -> Compact:
    more = (chat.text, chat.prompt, chat.question)
    return Compact(array("i", chat.ids.tolist()), runs_of(chat.labelled), chat.images, more)


def processed(
    processor: Any,
    sources: Sequence[str],
    texts: list[str],
    images: list[list[Image.Image]],
    side: str = "right",
    **settings: bool,
) -> dict[str, Any]:
    """What the processor makes of rendered chats and their images: tensors, padded on the `side`.

    Raises FinetuneError naming the rows.
    """
    padded: dict[str, Any] = {"return_tensors": "pt", "padding": True, "padding_side": side}
    settings = padded | plain(processor, texts[0]) | settings
    try:
        with LOCK:
            return dict(processor(text=texts, images=images if any(images) else None, **settings))
    except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as error:
        named = "; ".join(dict.fromkeys(sources))
        raise FinetuneError(f"{named}: the model's processor fails: {_first_line(error)}") from None


def plain(processor: Any, text: str) -> dict[str, bool]:
    """The tokenizer's settings for a rendered chat: the rule of `processor.apply_chat_template` for special tokens."""
    bos = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
