"""Videos for the model: which frames are taken, their size and times, and the processor's patches of them.

Frames are sampled as LLaMA-Factory samples them, from headers alone. The model folder's own video processor makes the
pixels; frames that the recipe wants smaller (or larger) than it would make them are resized before, as for images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.row_media import Video, shown
from finetune.errors import FinetuneError
from finetune.media.image_files import decode, image_size
from finetune.media.pixel_limits import PixelLimits
from finetune.media.video_files import Header, read_frames, read_header
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder

MAX_PIXELS = 2**28  # of all frames of a video that are in memory at once: 128 of 1920x1080


@dataclass(frozen=True)
class Clip:
    """The frames that are taken of a video.

    header: the whole video's; indices: [F] of the frames in it, F even as the tower takes them in pairs; size: (width,
    height) that they are resized to before the processor sees them; grid: (F / 2, rows, columns) of patches.
    """

    rules: VideoRules
    video: Video
    header: Header
    indices: tuple[int, ...]
    size: tuple[int, int]
    grid: tuple[int, int, int]

    @property
    def times(self) -> list[float]:
        """Seconds into the video of each pair of frames: the mean of both, as Qwen3-VL's processor has it."""
        times = [index / self.header.fps for index in self.indices]
        return [(first + second) / 2 for first, second in zip(times[::2], times[1::2], strict=True)]

    @property
    def seconds_a_pair(self) -> float:
        """Mean seconds from a pair of frames to the next: Qwen2.5-VL's second_per_grid_ts."""
        return 2 / (len(self.indices) / self.header.frames * self.header.fps)

    @property
    def metadata(self) -> dict[str, Any]:
        """transformers' VideoMetadata."""
        header = self.header
        return {
            "total_num_frames": header.frames,
            "fps": header.fps,
            "duration": header.frames / header.fps,
            "frames_indices": list(self.indices),
        }

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """The grids that stand in the text on their own: all of the video, or for Qwen3-VL each pair of frames."""
        pairs, rows, columns = self.grid
        return [(1, rows, columns)] * pairs if self.rules.timed else [self.grid]

    def resized(self, max_pixels: int) -> tuple[int, int, int]:
        """The grid if a frame may have at most `max_pixels` pixels."""
        return self.rules.fit(self.header.width, self.header.height, len(self.indices), max_pixels)[1]

    def frames(self) -> np.ndarray[Any, Any]:
        """[F, height, width, 3] uint8: the frames as the processor gets them. Raises FinetuneError."""
        source, distinct = self.video.source, sorted(set(self.indices))
        frames = {}
        try:
            images = (
                read_frames(source, self.header, distinct)
                if isinstance(source, Path)
                else (decode(self.video.files[index]) for index in distinct)
            )
            for index, image in zip(distinct, images, strict=True):
                if image.size != (self.header.width, self.header.height):
                    raise ValueError(f"frame {index + 1} is not of the size that its header said")
                if image.size != self.size:
                    image = image.resize(self.size, Image.Resampling.BICUBIC)
                frames[index] = np.asarray(image)
        except ValueError as error:
            raise FinetuneError(f"The video {shown(self.video)}: {error}.") from None
        return np.stack([frames[index] for index in self.indices])

    def pixels(self) -> tuple[Any, tuple[int, ...]]:
        """pixel_values [patches, patch dimension] and the grid that the processor made. Raises FinetuneError."""
        features = self.rules.processor.video_processor(
            videos=[self.frames()], video_metadata=[self.metadata], return_tensors="pt", **self.rules.arguments
        )
        return features["pixel_values_videos"], tuple(features["video_grid_thw"][0].tolist())


class VideoRules:
    """How the model's video processor and the recipe treat videos."""

    def __init__(self, folder: ModelFolder, processor: Any, recipe: Recipe) -> None:
        self.folder, self.processor, self.recipe = folder, processor, recipe
        # Qwen3-VL writes a time before each pair of frames, and its limits are of all frames together.
        self.timed = folder.model_type == "qwen3_vl"

    @cached_property
    def limits(self) -> PixelLimits:
        """The processor's own limits: of a frame, or for Qwen3-VL of all frames together. Raises ValueError."""
        processor = getattr(self.processor, "video_processor", None)
        if processor is None or processor.temporal_patch_size != 2:
            raise ValueError(f"{self.folder.path} has no video processor that Lensmith knows; remove the videos")
        min_pixels, max_pixels = processor.size["shortest_edge"], processor.size["longest_edge"]
        return PixelLimits(processor.patch_size, processor.merge_size, min_pixels, max_pixels)

    def read(self, video: Video, max_pixels: int | None = None) -> Clip:
        """Reads headers and chooses frames. max_pixels: pixels a frame may have, if fewer than the recipe says.

        Raises ValueError.
        """
        source, recipe = video.source, self.recipe
        if isinstance(source, str):
            what = "a data URI" if source.startswith("data:") else "a URL"
            raise ValueError(f"it is {what}; save it as a file")
        if isinstance(source, Path):
            header = read_header(source)
            count = min(header.frames, max(1, math.floor(header.frames / header.fps * recipe.video_fps)))
        else:
            header = Header(*_frame_size(source), len(source), recipe.video_fps)
            count = header.frames
        chosen = np.linspace(0, header.frames - 1, min(count, recipe.video_maxlen)).astype(int).tolist()
        indices = (*chosen, *chosen[len(chosen) - len(chosen) % 2 :])
        size, grid = self.fit(header.width, header.height, len(indices), max_pixels)
        if len(indices) * size[0] * size[1] > MAX_PIXELS:
            raise ValueError(
                f"{len(indices)} frames of {size[0]}x{size[1]} pixels are too many at once; lower video_maxlen or "
                "video_max_pixels"
            )
        return Clip(self, video, header, indices, size, grid)

    def fit(
        self, width: int, height: int, frames: int, max_pixels: int | None = None
    ) -> tuple[tuple[int, int], tuple[int, int, int]]:
        """The size to which frames are resized before the processor, and the grid of patches that it makes then.

        Raises ValueError for frames that the processor refuses.
        """
        limits, recipe = self.limits, self.recipe
        if self.timed and min(width, height) < limits.patch * limits.merge:
            side = limits.patch * limits.merge
            raise ValueError(f"frames of {width}x{height} pixels; the model needs at least {side}x{side}")
        max_pixels = min(max_pixels or limits.max_pixels, recipe.video_max_pixels or limits.max_pixels)
        counted = frames if self.timed else 1  # frames whose pixels the limits count as one

        def pixels(grid: tuple[int, int, int]) -> int:
            return grid[1] * grid[2] * limits.patch**2

        grid = limits.grid(width, height, counted)
        wanted = None
        if pixels(grid) > max_pixels:
            wanted = PixelLimits(limits.patch, limits.merge, 1, max_pixels)
        elif pixels(grid) < (recipe.video_min_pixels or 0):
            wanted = PixelLimits(limits.patch, limits.merge, recipe.video_min_pixels or 0, max_pixels)
        if wanted is not None:
            _, rows, columns = wanted.grid(width, height)
            width, height = columns * limits.patch, rows * limits.patch
            grid = limits.grid(width, height, counted)
        return (width, height), (frames // 2, *grid[1:])

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the processor: frames are sampled already, and its limits are those of its folder alone."""
        arguments: dict[str, Any] = {"do_sample_frames": False}
        if hasattr(self.processor.video_processor, "cap_pixels_per_frame"):
            arguments["cap_pixels_per_frame"] = False  # a limit of some versions of transformers 5, unset in folders
        return arguments

    @property
    def marks(self) -> tuple[str, str, str]:
        """What a template writes for a video: start, placeholder and end."""
        processor = self.processor
        return processor.vision_start_token, processor.video_token, processor.vision_end_token

    @cached_property
    def marks_stay(self) -> bool:
        """Whether the processor leaves a video's own start and end around its pairs': transformers 5.23, not 4.57."""
        start, pad, end = self.marks
        side = self.limits.patch * self.limits.merge
        features = self.processor(
            text=[f"{start}{pad}{end}"],
            videos=[np.zeros((2, side, side, 3), np.uint8)],
            video_metadata=[{"total_num_frames": 2, "fps": 2.0, "frames_indices": [0, 1]}],
            **self.arguments,
        )
        ids = list(features["input_ids"][0])
        return ids.count(self.processor.tokenizer.convert_tokens_to_ids(start)) == 2

    @cached_property
    def core(self) -> Any:
        """The model without its weights."""
        import torch
        from transformers import AutoConfig, AutoModel

        with torch.device("meta"):
            return AutoModel.from_config(AutoConfig.from_pretrained(self.folder.path, local_files_only=True))


def _frame_size(frames: Sequence[Path | str]) -> tuple[int, int]:
    """(width, height) of frames, from the header of each. Raises ValueError."""
    sizes = []
    for number, frame in enumerate(frames, 1):
        try:
            sizes.append(image_size(frame))
        except ValueError as error:
            raise ValueError(f"frame {number}, {shown(frame)}: {error}") from None
        if sizes[-1] != sizes[0]:
            (width, height), (first_width, first_height) = sizes[-1], sizes[0]
            raise ValueError(
                f"frame {number} has {width}x{height} pixels, the first {first_width}x{first_height}; make them equal"
            )
    return sizes[0]


def first_frame(video: Video) -> Image.Image:
    """The first frame, for people. Raises FinetuneError."""
    source = video.source
    if isinstance(source, tuple):
        return decode(source[0])
    try:
        if isinstance(source, str):
            raise ValueError("it is no file")
        return next(islice(read_frames(source, read_header(source), [0]), 1))
    except ValueError as error:
        raise FinetuneError(f"The video {shown(video)}: {error}.") from None
