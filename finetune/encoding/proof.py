"""Proves that our ids and labels are those that the model's own chat template and processor give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.data.formats import Row
from finetune.encoding.encoded import Encoded
from finetune.errors import FinetuneError
from finetune.media.image_files import decode
from finetune.media.videos import Clip


def chat_ids(row: Row, clips: Sequence[Clip], processor: Any) -> Any:
    """[L] ids of a whole chat with videos by the processor itself. Raises FinetuneError.

    The ids depend on the frames' number, size and times alone: black frames stand for the real ones, and no video is
    decoded.
    """
    made = processor(
        text=[processor.apply_chat_template(row.messages, tools=row.tools, tokenize=False)],
        images=[decode(path) for path in row.images] or None,
        videos=[np.zeros((len(clip.indices), *clip.size[::-1], 3), np.uint8) for clip in clips],
        video_metadata=[clip.metadata for clip in clips],
        **clips[0].rules.arguments,
    )
    return np.asarray(made["input_ids"][0])


def prove_encoding(rows: Sequence[Row], encoded: Sequence[Encoded], processor: Any, bank: Any) -> None:
    """Checks encoded chats against the processor's own ids, on real images. Raises FinetuneError if they differ."""
    for row, ours in zip(rows, encoded, strict=True):
        if row.videos:
            ids = chat_ids(row, [bank.clips[index] for index in ours.images if index in bank.clips], processor)
            _compare(ids, ours)
            continue
        images = iter([decode(path) for path in row.images])
        messages = [
            message
            | {
                "content": [
                    {"type": "image", "image": next(images)} if part["type"] == "image" else part
                    for part in message["content"]
                ]
            }
            for message in row.messages
        ]
        theirs = processor.apply_chat_template(messages, tools=row.tools, tokenize=True, return_dict=True)
        _compare(np.asarray(theirs["input_ids"]).reshape(-1), ours)


def _compare(theirs: Any, ours: Encoded) -> None:
    if not np.array_equal(theirs, ours.ids):
        raise FinetuneError(
            f"{ours.source}: this model's processor gives {len(theirs)} token ids where ours gives {len(ours.ids)}, or "
            "others; Lensmith does not support this model's template yet."
        )
