"""The Qwen-VL families' encoder: chats to token ids, label masks and M-RoPE positions, images and videos included."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.data.formats import Row
from finetune.encoding.encoded import Compact, Encoded, EncodedText, label_runs
from finetune.encoding.positions import rope_positions, video_positions
from finetune.encoding.skeletons import Skeletons
from finetune.encoding.special_tokens import refuse_specials, special_tokens
from finetune.errors import FinetuneError
from finetune.media.bank import ImageBank
from finetune.media.videos import Clip
from modelfiles import counted
from modelfiles.folder.model_folder import ModelFolder


def write_times(text: str, clips: Sequence[Clip]) -> str:
    """Writes videos into a rendered chat as Qwen3-VL reads them: for each pair of frames its time, then a video mark.

    clips: the chat's videos in order, of which the text may hold only the first. Other families' texts are not changed.
    """
    rules = clips[0].rules
    if not rules.timed:
        return text
    start, pad, end = rules.marks
    mark = f"{start}{pad}{end}"
    first, *others = text.split(mark)
    for clip, other in zip(clips, others, strict=False):
        times = "".join(f"<{time:.1f} seconds>{mark}" for time in clip.times)
        first += (f"{start}{times}{end}" if rules.marks_stay else times) + other
    return first


BATCH = 512  # chats rendered and tokenised at once
KEPT = 10_000  # chats that are kept, as datasets ask the same of many images


class ChatEncoder:
    """Renders and tokenises chats with a model folder's processor.

    Equal chats are encoded once: a dataset that asks the same questions of many images is quick.
    """

    def __init__(self, folder: ModelFolder, processor: Any, bank: ImageBank) -> None:
        self.folder, self.processor, self.bank = folder, processor, bank
        self.eos = folder.eos_token_ids
        if not self.eos:
            raise FinetuneError(f"{folder.path} names no eos_token_id; its answers would have no end.")
        if folder.chat_template is None:
            raise FinetuneError(f"{folder.path} has no chat template; use an instruction-tuned model.")
        self.image_token_id = int(folder.config["image_token_id"])
        self.video_token_id = int(folder.config.get("video_token_id") or -1)
        self.specials = special_tokens(processor.tokenizer)
        self._texts: dict[bytes, EncodedText] = {}
        self._skeletons = Skeletons(folder.chat_template, self._render_rows)

    def encode(self, rows: Sequence[Row], max_pixels: int | None = None) -> list[Encoded]:
        """Encodes whole chats; images and frames get at most `max_pixels`. Raises FinetuneError naming the row."""
        encoded = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            for row, chat in zip(batch, self.compact(batch, max_pixels), strict=True):
                if isinstance(chat, FinetuneError):
                    raise chat
                encoded.append(self.place(chat, row.source))
        return encoded

    def compact(self, rows: Sequence[Row], max_pixels: int | None = None) -> list[Compact | FinetuneError]:
        """Each chat as it is kept, or what is wrong with it."""
        media: list[tuple[int, ...] | FinetuneError] = []
        keys: list[bytes] = []
        fresh: dict[bytes, Row] = {}
        if len(self._texts) > KEPT:
            self._texts.clear()
        for row in rows:
            try:
                media.append(self.add_media(row, max_pixels))
                keys.append(self._key(row))
            except FinetuneError as error:
                media.append(error)
                keys.append(b"")
                continue
            if keys[-1] not in self._texts:
                fresh.setdefault(keys[-1], row)
        broken = self._encode_texts(list(fresh.items()))
        found: list[Compact | FinetuneError] = []
        for key, row, shown in zip(keys, rows, media, strict=True):
            if isinstance(shown, FinetuneError):
                found.append(shown)
            else:
                text = self._texts.get(key)
                found.append(broken[key] if text is None else self._with_media(text, shown, row))
        return found

    def place(self, chat: Compact, source: str) -> Encoded:
        """Gives each image its tokens and every token its position."""
        bank, ids, labelled = self.bank, np.array(chat.ids, dtype=np.int64), chat.labelled
        grids = [bank.grids[index] for index in chat.media]
        has_videos = any(index in bank.clips for index in chat.media)
        seen, spans = ids == self.image_token_id, grids
        if has_videos:
            seen |= ids == self.video_token_id
            spans = [span for index in chat.media for span in bank.spans(index)]
        if spans:
            counts = np.ones(len(ids), dtype=np.int64)
            counts[seen] = [bank.limits.tokens(span) for span in spans]
            ids, labelled = np.repeat(ids, counts), np.repeat(labelled, counts)
        if has_videos:
            positions = video_positions(ids, chat.media, bank)
        else:
            positions = rope_positions(ids == self.image_token_id, grids, bank.limits)
        return Encoded(ids, labelled, positions, chat.media, source)

    def added_tokens(self, index: int) -> int:
        """How many more tokens an image or a video has than a compact chat has for it."""
        return self.bank.tokens(index) - len(self.bank.spans(index))

    def with_an_empty_bank(self) -> ChatEncoder:
        """An encoder like this one, with a bank of its own."""
        return ChatEncoder(self.folder, self.processor, self.bank.empty())

    def encode_prompt(self, rows: Sequence[Row]) -> list[Encoded]:
        """Encodes chats without their last answer, ready for the model to give it."""
        return [self.place(chat, row.source) for chat, row in zip(self.compact_prompts(rows), rows, strict=True)]

    def compact_prompts(self, rows: Sequence[Row]) -> list[Compact]:
        """The same as they are kept. Raises FinetuneError naming the row."""
        found = []
        if len(self._texts) > KEPT:
            self._texts.clear()
        for row in rows:
            self.refuse_specials(row)
        prompts = [replace(row, messages=row.messages[:-1]) for row in rows]
        keys = [b"prompt" + self._key(row) for row in prompts]
        for key, row in zip(keys, prompts, strict=True):
            media = self.add_media(row)
            if key not in self._texts:
                (text,) = self._with_times(self._render([row.messages], row.tools, prompt=True), [row])
                ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
                self._texts[key] = self._text(ids, ())
            chat = self._with_media(self._texts[key], media, row)
            if isinstance(chat, FinetuneError):
                raise chat
            found.append(chat)
        return found

    def _text(self, ids: list[int], runs: Sequence[int]) -> EncodedText:
        images, videos = ids.count(self.image_token_id), ids.count(self.video_token_id)
        return EncodedText(array("i", ids), array("i", runs), images, videos)

    def _with_media(self, text: EncodedText, media: tuple[int, ...], row: Row) -> Compact | FinetuneError:
        """The chat with its images and videos, if the template shows all of them."""
        seen, spans = text.images, len(media)
        if row.videos:
            seen += text.videos
            spans = sum(len(self.bank.spans(index)) for index in media)
        if seen != spans:
            what = ("image or video", "images and videos") if row.videos else ("image",)
            return FinetuneError(f"{row.source}: the chat template shows {seen} of {counted(spans, *what)}.")
        return Compact(text.ids, text.runs, media)

    def _encode_texts(self, items: Sequence[tuple[bytes, Row]]) -> dict[bytes, FinetuneError]:
        """Tokenises chats that differ, and finds their label tokens; what is wrong with some, by their keys."""
        broken: dict[bytes, FinetuneError] = {}
        plain = [(key, row) for key, row in items if row.tools is None]
        groups = [plain] if plain else []
        groups += [[item] for item in items if item[1].tools is not None]
        for group in groups:
            try:
                self._encode_group(group)
            except FinetuneError as error:
                if len(group) == 1:
                    broken[group[0][0]] = error
                else:
                    for item in group:
                        broken |= self._encode_texts([item])
        return broken

    def _encode_group(self, group: Sequence[tuple[bytes, Row]]) -> None:
        """The same of chats that have the same tools. Raises FinetuneError for one that cannot be encoded."""
        rows = [row for _, row in group]
        for row in rows:
            self.refuse_specials(row)
        render = self._render_rows if any(row.videos for row in rows) else self._skeletons.rendered
        wholes, starts = render(rows)
        tokenizer = self.processor.tokenizer.backend_tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        encodings = tokenizer.encode_batch(wholes, add_special_tokens=False)
        for n, ((key, row), encoding) in enumerate(zip(group, encodings, strict=True)):
            ids = encoding.ids
            runs = label_runs(ids, encoding, wholes[n], starts[n], self.eos)
            if runs is None:
                raise FinetuneError(f"{row.source}: the chat template does not end answers with an end-of-turn token.")
            self._texts[key] = self._text(ids, runs)

    def _render_rows(self, rows: Sequence[Row]) -> tuple[list[str], list[list[int]]]:
        """Chats that have the same tools, by the model's template, and where each one's answers begin.

        Raises FinetuneError for a chat whose answers cannot be located.
        """
        if not rows:
            return [], []
        tools = rows[0].tools
        wholes = self._with_times(self._render([row.messages for row in rows], tools, prompt=False), rows)
        asked = [
            (n, i)
            for n, row in enumerate(rows)
            for i, message in enumerate(row.messages)
            if message["role"] == "assistant" and i not in row.unlabelled
        ]
        prefixes = self._render([rows[n].messages[:i] for n, i in asked], tools, prompt=True)
        prefixes = self._with_times(prefixes, [rows[n] for n, _ in asked])
        starts: list[list[int]] = [[] for _ in rows]
        for (n, _), prefix in zip(asked, prefixes, strict=True):
            if not wholes[n].startswith(prefix):
                raise FinetuneError(
                    f"{rows[n].source}: the model's chat template renders this chat's beginning differently once "
                    "later turns follow, so its answers cannot be located; train on single turns or another model."
                )
            starts[n].append(len(prefix))
        return wholes, starts

    def add_media(self, row: Row, max_pixels: int | None = None) -> tuple[int, ...]:
        """The bank's indices of the row's images and videos, in the order of its text. Raises FinetuneError."""
        if not row.videos:
            return tuple(self.bank.add(path, row.source, max_pixels) for path in row.images)
        images, videos = iter(row.images), iter(row.videos)
        return tuple(
            self.bank.add(next(images), row.source, max_pixels)
            if part["type"] == "image"
            else self.bank.add_video(next(videos), row.source, max_pixels)
            for message in row.messages
            for part in message["content"]
            if part["type"] != "text"
        )

    def _clips(self, row: Row) -> list[Clip]:
        return [self.bank.clips[self.bank.add_video(video, row.source)] for video in row.videos]

    def _key(self, row: Row) -> bytes:
        """A key that is equal for chats with the same text, times and labels."""
        chat: list[Any] = [row.messages, row.tools, row.unlabelled]
        if row.videos:
            chat.append([(clip.times, clip.seconds_a_pair) for clip in self._clips(row)])
        return marshal.dumps(chat, 2)  # a version that writes equal values alike

    def _with_times(self, texts: list[str], rows: Sequence[Row]) -> list[str]:
        """The texts with the rows' videos written as the model reads them."""
        return [
            write_times(text, self._clips(row)) if row.videos else text for text, row in zip(texts, rows, strict=True)
        ]

    def _render(self, chats: list[list[dict[str, Any]]], tools: list[Any] | None, prompt: bool) -> list[str]:
        rendered = self.processor.apply_chat_template(chats, tools=tools, tokenize=False, add_generation_prompt=prompt)
        return list(rendered)

    def refuse_specials(self, row: Row) -> None:
        """Raises FinetuneError if a text holds a special token."""
        refuse_specials(row, self.specials)
