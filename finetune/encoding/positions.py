"""M-RoPE positions of text, images and videos, as transformers computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.media.bank import ImageBank
from finetune.media.pixel_limits import PixelLimits


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


def rope_positions(is_image: Any, grids: Sequence[tuple[int, int, int]], limits: PixelLimits) -> Any:
    """[3, L] M-RoPE positions of a chat whose image tokens are marked by `is_image` [L].

    Text counts up in all three rows; an image counts its rows and columns from where it starts, and the text after it
    goes on from its longer side. Equal to the models' `get_rope_index` in transformers (tested against it).
    """
    text = np.cumsum(~is_image)
    positions = np.empty((3, len(is_image)), dtype=np.int64)
    positions[:] = text - 1
    marks = np.flatnonzero(is_image)
    shift, taken = 0, 0
    for _, rows, columns in grids:
        rows, columns = rows // limits.merge, columns // limits.merge
        at = marks[taken : taken + rows * columns]
        taken += rows * columns
        start = text[at[0]] + shift
        positions[0, at] = start
        positions[1, at] = start + np.repeat(np.arange(rows), columns)
        positions[2, at] = start + np.tile(np.arange(columns), rows)
        positions[:, at[-1] + 1 :] += max(rows, columns)
        shift += max(rows, columns)
    return positions
