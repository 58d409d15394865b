"""The images of a dataset: their sizes read from headers at once, their pixels decoded and resized when needed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from finetune.data.row_media import Video, shown
from finetune.errors import FinetuneError
from finetune.media.image_files import decode, image_size
from finetune.media.pixel_limits import PixelLimits
from modelfiles import counted

if TYPE_CHECKING:
    from finetune.media.videos import Clip, VideoRules


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

    def add(self, path: Path | str, source: str, max_pixels: int | None = None) -> int:
        """The image's index; reads its header the first time. max_pixels: fewer than the limits allow.

        Raises FinetuneError naming the row.
        """
        index = self._index.get((path, max_pixels))
        if index is None:
            try:
                size = image_size(path)
                index = self.put(path, size, max_pixels)
            except ValueError as error:
                raise FinetuneError(f"{source}: the image {shown(path)}: {error}.") from None
        return index

    def add_video(self, video: Video, source: str, max_pixels: int | None = None) -> int:
        """The same for a video; max_pixels: pixels that a frame may have, if fewer than the recipe says."""
        index = self._index.get((video, max_pixels))
        if index is None:
            if self.videos is None:
                raise FinetuneError(f"{source}: videos cannot be read here.")
            try:
                clip = self.videos.read(video, max_pixels)
            except ValueError as error:
                raise FinetuneError(f"{source}: the video {shown(video)}: {error}.") from None
            index = self.put(video, clip, max_pixels)
        return index

    def put(self, medium: Path | str | Video, known: tuple[int, int] | Clip, max_pixels: int | None = None) -> int:
        """The index of an image whose size, or of a video whose clip is known. Raises ValueError for its shape."""
        index = self._index.get((medium, max_pixels))
        if index is not None:
            return index
        index = len(self.paths)
        if isinstance(known, tuple):
            limits = self.limits if max_pixels is None else replace(self.limits, max_pixels=max_pixels)
            size, grid = known, limits.grid(*known)
            if max_pixels is not None and grid != self.limits.grid(*size):
                self._shrunk.add(index)
        else:
            self.clips[index] = clip = replace(known, rules=self.videos)  # type: ignore[arg-type]
            size, grid = (clip.header.width, clip.header.height), clip.grid
        self._index[medium, max_pixels] = index
        self.paths.append(medium)
        self.sizes.append(size)
        self.grids.append(grid)
        return index

    def known(self, index: int) -> tuple[int, int] | Clip:
        """What `put` needs to know of an image or a video."""
        clip = self.clips.get(index)
        return self.sizes[index] if clip is None else replace(clip, rules=None)  # type: ignore[arg-type]  # is each bank's own

    def empty(self) -> ImageBank:
        """A bank like this one, without images."""
        return ImageBank(self.limits, self.videos)

    def resized(self, index: int, max_pixels: int | None, frame_max_pixels: int | None) -> tuple[int, int, int]:
        """The grid of an image of at most `max_pixels` or a frame of at most `frame_max_pixels`; None: as it is now."""
        clip = self.clips.get(index)
        max_pixels = frame_max_pixels if clip else max_pixels
        if max_pixels is None:
            return self.grids[index]
        return (
            clip.resized(max_pixels) if clip else replace(self.limits, max_pixels=max_pixels).grid(*self.sizes[index])
        )

    def spans(self, index: int) -> list[tuple[int, int, int]]:
        """The grids that stand in the text on their own: an image is one, a video one or several."""
        clip = self.clips.get(index)
        return clip.spans if clip else [self.grids[index]]

    def counts(self) -> str:
        """ "8 images" or "8 images, 2 videos", for people."""
        images = counted(len(self.paths) - len(self.clips), "image")
        return f"{images}, {counted(len(self.clips), 'video')}" if self.clips else images

    def tokens(self, index: int) -> int:
        return self.limits.tokens(self.grids[index])

    def pixels(
        self, indices: Sequence[int], processor: Any, pool: ThreadPoolExecutor, raw: bool = False
    ) -> tuple[Any, Any]:
        """Decodes images and videos: pixel_values [patches, patch dimension] and grids [I, 3]. Raises FinetuneError.

        processor: the image processor; raw: whether pixels may be uint8, for normalised.Normalisation to finish.
        """
        if any(index in self.clips for index in indices):
            return self._mixed(indices, processor, pool)
        import torch

        # A Pillow processor has no step for both, nor have settings that leave one out.
        raw = raw and processor.do_rescale and processor.do_normalize and hasattr(processor, "rescale_and_normalize")
        settings = {"do_rescale": False, "do_normalize": False} if raw else {}
        made = list(pool.map(lambda index: self._patches(index, processor, settings), indices))
        return torch.cat([patches for patches, _ in made]), torch.cat([grid for _, grid in made])

    def _patches(self, index: int, processor: Any, settings: dict[str, Any]) -> tuple[Any, Any]:
        """An image's pixel_values and its grid [1, 3]."""
        made = processor(images=[self._decode(index)], return_tensors="pt", **settings)
        if tuple(made["image_grid_thw"][0].tolist()) != self.grids[index]:
            raise FinetuneError(f"{shown(self.paths[index])} is not of the size that its header said.")
        return made["pixel_values"], made["image_grid_thw"]

    def _mixed(self, indices: Sequence[int], processor: Any, pool: ThreadPoolExecutor) -> tuple[Any, Any]:
        """`pixels` one by one, as videos have a processor of their own."""
        import torch

        pixels, grids = [], []
        for index in indices:
            if index in self.clips:
                patches, grid = self.clips[index].pixels()
                if grid != self.grids[index]:
                    raise FinetuneError(f"{shown(self.paths[index])}: its patches are not those that were counted.")
            else:
                patches, grid = self.pixels([index], processor, pool)[0], self.grids[index]
            pixels.append(patches)
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


class SizedImages:
    """The images of a dataset, each path once. paths: [I], paths or data URIs; sizes: [I] (width, height).

    clips: videos, which there are none of.
    """

    def __init__(self) -> None:
        self.clips: dict[int, Any] = {}
        self.paths: list[Path | str] = []
        self.sizes: list[tuple[int, int]] = []
        self._index: dict[Path | str, int] = {}

    def add(self, path: Path | str, source: str) -> int:
        """The image's index; reads its header the first time. Raises FinetuneError naming the row."""
        index = self._index.get(path)
        if index is None:
            try:
                index = self.put(path, image_size(path))
            except ValueError as error:
                raise FinetuneError(f"{source}: the image {shown(path)}: {error}.") from None
        return index

    def put(self, path: Path | str, known: tuple[int, int]) -> int:
        """The index of an image whose size is known."""
        index = self._index.setdefault(path, len(self.paths))
        if index == len(self.paths):
            self.paths.append(path)
            self.sizes.append(known)
        return index

    def known(self, index: int) -> tuple[int, int]:
        """What `put` needs to know of an image."""
        return self.sizes[index]

    def empty(self) -> SizedImages:
        """A bank like this one, without images."""
        return SizedImages()

    def counts(self) -> str:
        return counted(len(self.paths), "image")


Bank = ImageBank | SizedImages
