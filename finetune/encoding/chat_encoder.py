"""The Qwen-VL families' encoder: chats to token ids, label masks and M-RoPE positions, images and videos included."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.data.formats import Row
from finetune.encoding.encoded import Encoded
from finetune.encoding.positions import rope_positions, video_positions
from finetune.encoding.special_tokens import refuse_specials, special_tokens
from finetune.errors import FinetuneError
from finetune.media.bank import ImageBank
from finetune.media.videos import Clip
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


class ChatEncoder:
    """Renders and tokenises chats with a model folder's processor.

    Equal chats are encoded once: a dataset that asks the same questions of many images is quick.
    """

    def __init__(self, folder: ModelFolder, processor: Any, bank: ImageBank) -> None:
        self.processor = processor
        self.bank = bank
        self.eos = np.array(folder.eos_token_ids)
        if not len(self.eos):
            raise FinetuneError(f"{folder.path} names no eos_token_id; its answers would have no end.")
        if folder.chat_template is None:
            raise FinetuneError(f"{folder.path} has no chat template; use an instruction-tuned model.")
        self.image_token_id = int(folder.config["image_token_id"])
        self.video_token_id = int(folder.config.get("video_token_id") or -1)
        self.specials = special_tokens(processor.tokenizer)
        self._texts: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
        self._done: dict[tuple[str, tuple[tuple[int, int, int], ...]], Encoded] = {}

    def encode(self, rows: Sequence[Row], max_pixels: int | None = None) -> list[Encoded]:
        """Encodes whole chats; images and frames get at most `max_pixels`. Raises FinetuneError naming the row."""
        keys = [self._key(row) for row in rows]
        fresh = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._texts}
        items = list(fresh.items())
        for start in range(0, len(items), BATCH):
            self._encode_texts(items[start : start + BATCH])
        return [self._place(key, row, max_pixels) for key, row in zip(keys, rows, strict=True)]

    def encode_prompt(self, rows: Sequence[Row]) -> list[Encoded]:
        """Encodes chats without their last answer, ready for the model to give it."""
        encoded = []
        for row in rows:
            self.refuse_specials(row)
        prompts = [replace(row, messages=row.messages[:-1]) for row in rows]
        keys = ["prompt" + self._key(row) for row in prompts]
        for key, row in zip(keys, prompts, strict=True):
            if key not in self._texts:
                (text,) = self._with_times(self._render([row.messages], row.tools, prompt=True), [row])
                ids = np.array(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
                self._texts[key] = ids, np.zeros(len(ids), dtype=bool)
            encoded.append(self._place(key, row))
        return encoded

    def _encode_texts(self, items: Sequence[tuple[str, Row]]) -> None:
        """Tokenises chats that differ, and finds their label masks."""
        plain = [(key, row) for key, row in items if row.tools is None]
        groups = [plain] if plain else []
        groups += [[item] for item in items if item[1].tools is not None]
        for group in groups:
            rows = [row for _, row in group]
            for row in rows:
                self.refuse_specials(row)
            wholes = self._with_times(self._render([row.messages for row in rows], rows[0].tools, prompt=False), rows)
            asked = [
                (n, i)
                for n, row in enumerate(rows)
                for i, message in enumerate(row.messages)
                if message["role"] == "assistant" and i not in row.unlabelled
            ]
            prefixes = self._render([rows[n].messages[:i] for n, i in asked], rows[0].tools, prompt=True)
            prefixes = self._with_times(prefixes, [rows[n] for n, _ in asked])
            starts: list[list[int]] = [[] for _ in rows]
            for (n, _), prefix in zip(asked, prefixes, strict=True):
                if not wholes[n].startswith(prefix):
                    raise FinetuneError(
                        f"{rows[n].source}: the model's chat template renders this chat's beginning differently once "
                        "later turns follow, so its answers cannot be located; train on single turns or another model."
                    )
                starts[n].append(len(prefix))
            tokens = self.processor.tokenizer(wholes, add_special_tokens=False, return_offsets_mapping=True)
            for n, (key, row) in enumerate(group):
                ids = np.array(tokens["input_ids"][n], dtype=np.int64)
                offsets = np.array(tokens["offset_mapping"][n], dtype=np.int64).reshape(-1, 2)
                self._texts[key] = ids, self._label_mask(ids, offsets, wholes[n], starts[n], row)

    def _label_mask(self, ids: Any, offsets: Any, text: str, starts: list[int], row: Row) -> Any:
        """[L] bool: from each answer's first token to its end-of-turn token and the newline after it.

        offsets: [L, 2], where each token begins and ends in the chat's text.

        A token that begins in the prompt and reaches into the answer is no label: the model never writes it.
        """
        ends = np.flatnonzero(np.isin(ids, self.eos))
        labelled = np.zeros(len(ids), dtype=bool)
        for start in starts:
            first = int(np.searchsorted(offsets[:, 0], start))
            later = ends[ends >= first]
            if not len(later):
                raise FinetuneError(f"{row.source}: the chat template does not end answers with an end-of-turn token.")
            after = later[0] + 1
            newline = after < len(ids) and text[slice(*offsets[after])].isspace()
            labelled[first : after + newline] = True
        return labelled

    def _place(self, key: str, row: Row, max_pixels: int | None = None) -> Encoded:
        """Gives each image its tokens and every token its position."""
        images = self.add_media(row, max_pixels)
        grids = tuple(self.bank.grids[index] for index in images)
        done = self._done.get((key, grids))
        if done is None:
            ids, labelled = self._texts[key]
            counts = np.ones(len(ids), dtype=np.int64)
            seen, spans = ids == self.image_token_id, list(grids)
            if row.videos:
                seen |= ids == self.video_token_id
                spans = [span for index in images for span in self.bank.spans(index)]
            marks = np.flatnonzero(seen)
            if len(marks) != len(spans):
                what = "images and videos" if row.videos else "images"
                raise FinetuneError(f"{row.source}: the chat template shows {len(marks)} of {len(spans)} {what}.")
            counts[marks] = [self.bank.limits.tokens(span) for span in spans]
            ids, labelled = np.repeat(ids, counts), np.repeat(labelled, counts)
            if row.videos:
                positions = video_positions(ids, images, self.bank)
            else:
                positions = rope_positions(ids == self.image_token_id, grids, self.bank.limits)
            done = self._done[key, grids] = Encoded(ids, labelled, positions, (), "")
        return Encoded(done.ids, done.labelled, done.positions, images, row.source)

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

    def _key(self, row: Row) -> str:
        """A key that is equal for chats with the same text, times and labels."""
        chat: list[Any] = [row.messages, row.tools, row.unlabelled]
        if row.videos:
            chat.append([(clip.times, clip.seconds_a_pair) for clip in self._clips(row)])
        return json.dumps(chat, ensure_ascii=False)

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
