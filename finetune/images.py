"""Images: sizes from headers, the processor's resize arithmetic, decoding into patches; the bank of a dataset's media.

Nothing is decoded to count tokens. The processor itself makes the pixels, so training sees what a server makes of the
same file; only its size limits are narrowed, when the recipe says so.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from finetune.errors import FinetuneError
from finetune.recipe import Recipe
from finetune.row_media import Video, shown
from modelfiles.folder import ModelFolder

if TYPE_CHECKING:
    from finetune.videos import Clip, VideoRules

EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class PixelLimits:
    """How a model's processor sizes images: patches of `patch` pixels, merge x merge of them to a token."""

    patch: int
    merge: int
    least: int
    most: int

    def grid(self, width: int, height: int, frames: int = 1) -> tuple[int, int, int]:
        """(1, rows, columns) of patches after the resize of an image of width x height pixels.

        frames: of a video whose limits are of all its frames together, an even number. The arithmetic of `smart_resize`
        in transformers' image_processing_qwen2_vl.py and video_processing_qwen3_vl.py (Python's round, half to even).
        Raises ValueError for an aspect ratio over 200.
        """
        factor = self.patch * self.merge
        if max(height, width) > 200 * min(height, width):
            raise ValueError(f"{width}x{height} pixels: the aspect ratio must be at most 200")
        rows, columns = round(height / factor), round(width / factor)
        if frames * rows * columns * factor**2 > self.most:
            shrink = math.sqrt(frames * height * width / self.most)
            rows = max(1, math.floor(height / shrink / factor))
            columns = max(1, math.floor(width / shrink / factor))
        elif frames * rows * columns * factor**2 < self.least:
            enlarge = math.sqrt(self.least / (frames * height * width))
            rows = math.ceil(height * enlarge / factor)
            columns = math.ceil(width * enlarge / factor)
        return 1, rows * self.merge, columns * self.merge

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """Image tokens of a grid."""
        return grid[0] * grid[1] * grid[2] // self.merge**2


def pixel_limits(folder: ModelFolder, recipe: Recipe) -> PixelLimits:
    """The model's limits, narrowed by the recipe's image_min_pixels and image_max_pixels. Raises FinetuneError."""
    least, most = folder.image_pixel_limits
    if not (least and most and folder.patch_size):
        raise FinetuneError(f"{folder.path} has no preprocessor_config.json with patch_size and pixel limits.")
    least = max(least, recipe.image_min_pixels or 0)
    most = min(most, recipe.image_max_pixels or most)
    if least > most:
        raise FinetuneError(f"The image limits leave no size: at least {least} and at most {most} pixels.")
    return PixelLimits(folder.patch_size, folder.merge_size, least, most)


def image_size(path: Path | str) -> tuple[int, int]:
    """(width, height) in pixels from the file's header, turned as its EXIF orientation says. Raises ValueError."""
    with _open(path) as image:
        width, height = image.size
        # Asking a PNG without an EXIF chunk before its pixels for EXIF would decode it whole.
        has_exif = "exif" in image.info or image.format in ("JPEG", "MPO", "TIFF")
        turned = has_exif and image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


class ImageBank:
    """The images and videos of a dataset, each once.

    paths: [I], paths, data URIs or Videos; sizes: [I] (width, height) in pixels; grids: [I] patch grids; both are known
    before any decoding. An image that is asked for smaller than the limits say is another one. clips: what is taken of
    the videos, by their index.
    """

    def __init__(self, limits: PixelLimits, videos: VideoRules | None = None) -> None:
        self.limits, self.videos = limits, videos
        self.clips: dict[int, Clip] = {}
        self.paths: list[Path | str | Video] = []
        self.sizes: list[tuple[int, int]] = []
        self.grids: list[tuple[int, int, int]] = []
        self._shrunk: set[int] = set()
        self._index: dict[tuple[Path | str | Video, int | None], int] = {}

    def add(self, path: Path | str, source: str, most: int | None = None) -> int:
        """The image's index; reads its header the first time. most: pixels it may have, fewer than the limits' most.

        Raises FinetuneError naming the row.
        """
        index = self._index.get((path, most))
        if index is None:
            limits = self.limits if most is None else replace(self.limits, most=most)
            try:
                size = image_size(path)
                grid = limits.grid(*size)
            except ValueError as error:
                raise FinetuneError(f"{source}: the image {shown(path)}: {error}.") from None
            index = self._index[path, most] = len(self.paths)
            if grid != self.limits.grid(*size):
                self._shrunk.add(index)
            self.paths.append(path)
            self.sizes.append(size)
            self.grids.append(grid)
        return index

    def add_video(self, video: Video, source: str, most: int | None = None) -> int:
        """The same for a video; most: pixels that a frame may have, if fewer than the recipe says."""
        index = self._index.get((video, most))
        if index is None:
            if self.videos is None:
                raise FinetuneError(f"{source}: videos cannot be read here.")
            try:
                clip = self.videos.read(video, most)
            except ValueError as error:
                raise FinetuneError(f"{source}: the video {shown(video)}: {error}.") from None
            index = self._index[video, most] = len(self.paths)
            self.clips[index] = clip
            self.paths.append(video)
            self.sizes.append((clip.header.width, clip.header.height))
            self.grids.append(clip.grid)
        return index

    def resized(self, index: int, most: int | None, frame_most: int | None) -> tuple[int, int, int]:
        """The grid if an image may have at most `most` pixels and a frame `frame_most`; None: as many as it has."""
        clip = self.clips.get(index)
        most = frame_most if clip else most
        if most is None:
            return self.grids[index]
        return clip.resized(most) if clip else replace(self.limits, most=most).grid(*self.sizes[index])

    def spans(self, index: int) -> list[tuple[int, int, int]]:
        """The grids that stand in the text on their own: an image is one, a video one or several."""
        clip = self.clips.get(index)
        return clip.spans if clip else [self.grids[index]]

    def counts(self) -> str:
        """ "8 images" or "8 images, 2 videos", for people."""
        images = f"{len(self.paths) - len(self.clips):,} images"
        return f"{images}, {len(self.clips):,} videos" if self.clips else images

    def tokens(self, index: int) -> int:
        return self.limits.tokens(self.grids[index])

    def pixels(self, indices: Sequence[int], processor: Any, pool: ThreadPoolExecutor) -> tuple[Any, Any]:
        """Decodes images and videos: pixel_values [patches, patch dimension] and grids [I, 3]. Raises FinetuneError.

        processor: the image processor.
        """
        if any(index in self.clips for index in indices):
            return self._mixed(indices, processor, pool)
        images = list(pool.map(self._decode, indices))
        made = processor(images=images, return_tensors="pt")
        grids = made["image_grid_thw"]
        for index, grid in zip(indices, grids.tolist(), strict=True):
            if tuple(grid) != self.grids[index]:
                raise FinetuneError(f"{shown(self.paths[index])} is not of the size that its header said.")
        return made["pixel_values"], grids

    def _mixed(self, indices: Sequence[int], processor: Any, pool: ThreadPoolExecutor) -> tuple[Any, Any]:
        """`pixels` one by one, as videos have a processor of their own."""
        import torch

        pixels, grids = [], []
        for index in indices:
            if index in self.clips:
                made, grid = self.clips[index].pixels()
                if grid != self.grids[index]:
                    raise FinetuneError(f"{shown(self.paths[index])}: its patches are not those that were counted.")
            else:
                made, grid = self.pixels([index], processor, pool)[0], self.grids[index]
            pixels.append(made)
            grids.append(grid)
        return torch.cat(pixels), torch.tensor(grids)

    def _decode(self, index: int) -> Image.Image:
        path = self.paths[index]
        assert not isinstance(path, Video)
        image = decode(path)
        if index not in self._shrunk:
            return image
        _, rows, columns = self.grids[index]
        patch = self.limits.patch
        return image.resize((columns * patch, rows * patch), Image.Resampling.BICUBIC)


def decode(path: Path | str) -> Image.Image:
    """The upright RGB image. Raises FinetuneError."""
    try:
        with _open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (ValueError, OSError, SyntaxError) as error:
        raise FinetuneError(f"The image {shown(path)} cannot be decoded: {error}.") from None


def _open(path: Path | str) -> Image.Image:
    """Opens a file or a base64 data URI; only its header is read. Raises ValueError."""
    file: Path | io.BytesIO
    if isinstance(path, Path):
        file = path
    else:
        head, comma, data = path.partition(",")
        if not (head.startswith("data:") and head.endswith(";base64") and comma):
            raise ValueError("it is neither a path nor a base64 data URI")
        try:
            file = io.BytesIO(base64.b64decode(data, validate=True))
        except binascii.Error as error:
            raise ValueError(f"its base64 is broken ({error})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file)
    except FileNotFoundError:
        raise ValueError("the file does not exist") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"the file is not a readable image ({error})") from None
