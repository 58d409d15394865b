"""Videos in a chat's text and positions, as the model's own processor and model have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.formats import Row
from finetune.images import ImageBank, decode
from finetune.videos import Clip


def write_times(text: str, clips: Sequence[Clip]) -> str:
    """A rendered chat with each video's mark once for each pair of frames and its time before it, for Qwen3-VL.

    clips: the chat's videos in order, of which the text may hold only the first. Other families' texts stay.
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


def video_positions(ids: Any, media: Sequence[int], bank: ImageBank) -> Any:
    """[3, L] M-RoPE positions of a chat with the bank's `media`, videos among them, by the model's get_rope_index.

    Its arithmetic of times differs between versions of transformers, so there is none here.
    """
    import torch

    clips = [bank.clips[index] for index in media if index in bank.clips]
    images = [bank.grids[index] for index in media if index not in bank.clips]
    core, tokens = clips[0].rules.core, torch.from_numpy(ids)[None]
    given: dict[str, Any] = {
        "image_grid_thw": torch.tensor(images) if images else None,
        "video_grid_thw": torch.tensor([clip.grid for clip in clips]),
    }
    takes = core.get_rope_index.__code__.co_varnames
    if "mm_token_type_ids" in takes:
        is_image, is_video = tokens == core.config.image_token_id, tokens == core.config.video_token_id
        given["mm_token_type_ids"] = is_image.int() + 2 * is_video.int()
    if "second_per_grid_ts" in takes:
        given["second_per_grid_ts"] = torch.tensor([clip.seconds_a_pair for clip in clips])
    return core.get_rope_index(tokens, **given)[0][:, 0].numpy()


def chat_ids(row: Row, clips: Sequence[Clip], processor: Any) -> Any:
    """[L] ids of a whole chat with videos by the processor itself. Raises FinetuneError.

    They follow from the frames' number, size and times, so black ones do, and nothing of a long video is decoded.
    """
    made = processor(
        text=[processor.apply_chat_template(row.messages, tools=row.tools, tokenize=False)],
        images=[decode(path) for path in row.images] or None,
        videos=[np.zeros((len(clip.indices), *clip.size[::-1], 3), np.uint8) for clip in clips],
        video_metadata=[clip.metadata for clip in clips],
        **clips[0].rules.arguments,
    )
    return np.asarray(made["input_ids"][0])
