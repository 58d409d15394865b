"""Images for the model: what the frozen vision tower makes of each, computed once and kept while memory lasts; or
pixels, if the tower is trained.

An image's features are the language model's image tokens and, for Qwen3-VL, the DeepStack features added to its first
layers: (1 + DeepStack layers) x tokens x hidden size x bytes, so 1.2 MB x 4 for a 640x480 image of Qwen3-VL-2B in 16
bit. They are kept in host memory if all images' fit in a quarter of it, else in a file in the run's folder if its disk
has room for them, else computed again each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune.compute.vision import Tower, chunks
from finetune.families.batch import ready
from finetune.families.feature_file import FeatureFile, file_for
from finetune.families.forward import encode_images
from finetune.media.bank import ImageBank
from finetune.media.normalised import Normalisation
from finetune.model.tensors import is_sharded

THREADS = max(2, min(8, len(os.sched_getaffinity(0)) - 1))  # Pillow and torch work outside Python's lock


class PixelLoader:
    """Decodes images in threads, the next batches' while this one is computed; `device` is where they go."""

    def __init__(self, bank: ImageBank, processor: Any, device: torch.device) -> None:
        self.bank, self.processor, self.device = bank, processor.image_processor, device
        self.normalisation = Normalisation(self.processor)
        self.pool = ThreadPoolExecutor(THREADS)
        self.feeder = ThreadPoolExecutor(1)
        self._coming: dict[tuple[int, ...], Future[tuple[Any, Any]]] = {}

    def prefetch(self, images: tuple[int, ...]) -> None:
        """Starts to decode these images in the background."""
        if images not in self._coming:
            self._coming[images] = self.feeder.submit(self._read, images)

    def get(self, images: tuple[int, ...]) -> tuple[Any, Any]:
        """Patches [patches, patch dimension], for `placed`, and grids [images, 3], on the CPU. Raises FinetuneError."""
        coming = self._coming.pop(images, None)
        return coming.result() if coming else self._read(images)

    def placed(self, patches: Any) -> Any:
        """pixel_values on the device."""
        return self.normalisation(patches.to(self.device, non_blocking=True))

    def _read(self, images: tuple[int, ...]) -> tuple[Any, Any]:
        patches, grids = self.bank.pixels(images, self.processor, self.pool, raw=True)
        return ready(patches, self.device), grids

    def close(self) -> None:
        for pool in (self.feeder, self.pool):
            pool.shutdown(cancel_futures=True)


class TrainedVision:
    """The pixels of each batch's images, for a vision tower that changes with every step.

    `model` is the *ForConditionalGeneration module.
    """

    def __init__(self, model: Any, device: torch.device, bank: ImageBank, processor: Any) -> None:
        self.visual, self.device, self.loader = model.model.visual, device, PixelLoader(bank, processor, device)

    def prefetch(self, images: Sequence[int]) -> None:
        if images:
            self.loader.prefetch(tuple(images))

    def get(self, images: Sequence[int]) -> tuple[Any, Any] | None:
        """(pixels, grids) on the device. Raises FinetuneError.

        Without images None, or those of a blank one where FSDP has sharded the tower: its weights are gathered by all
        processes or by none, and another process may have images in its batch.
        """
        if not images:
            return self._blank() if is_sharded(self.visual) else None
        pixels, grids = self.loader.get(tuple(images))
        return self.loader.placed(pixels), grids.to(self.device)

    def _blank(self) -> tuple[Any, Any]:
        config = self.visual.config
        side = config.spatial_merge_size
        values = getattr(config, "in_channels", 3) * config.temporal_patch_size * config.patch_size**2
        grids = torch.tensor([[1, side, side]], device=self.device)
        return torch.zeros(side * side, values, device=self.device), grids

    def close(self) -> None:
        self.loader.close()


class FrozenFeatures:
    """Features by image index, from the frozen tower.

    `order` names images in the order of use: the tower gets them in chunks of the order of first use, so that a resumed
    run computes bit for bit what an unbroken one does. reused: whether the order is used more than
    once; processes_per_host: how many processes of the run share this machine's memory, each with its own features;
    folder: on the disk that may hold them.

    levels: 1 + D, of an image token's features; room: where features go that have room there, [levels, tokens, hidden]
    on the device; until it is set, and for more tokens, they get memory of their own each time.
    """

    room: Any = None

    def __init__(
        self,
        model: Any,
        bank: ImageBank,
        processor: Any,
        order: Sequence[int],
        reused: bool = False,
        processes_per_host: int = 1,
        folder: Path | None = None,
    ) -> None:
        self.bank = bank
        self.device = next(model.model.visual.parameters()).device
        self.loader = PixelLoader(bank, processor, self.device)
        encode = partial(_encode, model, self.loader.normalisation)
        self.tower = Tower(model.model.visual, encode, self.device)
        vision, dtype = model.config.vision_config, model.model.visual.dtype
        self.levels = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or [])
        self.hidden = model.model.language_model.config.hidden_size
        used = list(dict.fromkeys(order))
        size = self.levels * sum(map(bank.tokens, used)) * self.hidden * dtype.itemsize
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._kept: dict[int, Any] | FeatureFile | None = {}
        if not (reused or len(used) < len(order)):
            self._kept = None
        elif size > memory // (4 * processes_per_host):
            shapes = {index: (self.levels, bank.tokens(index), self.hidden) for index in used}
            self._kept = file_for(folder, shapes, dtype, processes_per_host)
        self.cached = self._kept is not None
        self.chunks: list[list[int]] = []
        if self.cached:
            self.chunks = [used[images] for images in chunks([bank.grids[index] for index in used])]
        self.chunk_of = {index: number for number, chunk in enumerate(self.chunks) for index in chunk}

    def close(self) -> None:
        self.loader.close()

    def prefetch(self, images: Sequence[int]) -> None:
        """Starts to decode what `get` will need for these images, in the background."""
        for chunk in self._missing(images):
            self.loader.prefetch(chunk)
        if isinstance(self._kept, FeatureFile):
            for index in images:
                self._kept.prefetch(index)

    def get(self, images: Sequence[int]) -> Any | None:
        """[1 + D, tokens of all the images in order, hidden], or None without images. Raises FinetuneError.

        In `room` they are valid until the next call.
        """
        if not images:
            return None
        if self._kept is None:
            (once,) = self._missing(images)
            features = self._compute(once)
            if len(once) == len(images):
                return features
            each = dict(self._apart(once, features))
            return torch.cat([each[index] for index in images], dim=1)
        for chunk in self._missing(images):
            self._kept.update(self._apart(chunk, self._compute(chunk).cpu()))
        parts = [self._kept[index] for index in images]
        shape = (self.levels, sum(part.shape[1] for part in parts), self.hidden)
        features = torch.empty(shape, dtype=parts[0].dtype, pin_memory=self.device.type == "cuda")
        torch.cat(parts, dim=1, out=features)
        room = self._room(images)
        return features.to(self.device, non_blocking=True) if room is None else room.copy_(features, non_blocking=True)

    def _missing(self, images: Sequence[int]) -> list[tuple[int, ...]]:
        """The images that must go through the tower, in the groups in which they go."""
        if self._kept is None:
            return [tuple(dict.fromkeys(images))] if images else []
        kept = self._kept
        missing = (index for index in images if index not in kept)
        return [tuple(self.chunks[chunk]) for chunk in dict.fromkeys(self.chunk_of[index] for index in missing)]

    def _compute(self, images: tuple[int, ...]) -> Any:
        """[1 + D, tokens of the images in order, hidden]."""
        patches, grids = self.loader.get(images)
        sizes = [(time, rows, columns) for time, rows, columns in grids.tolist()]
        return self.tower(patches, sizes, self._room(images))

    def _room(self, images: Sequence[int]) -> Any | None:
        """Where in `room` the features of the images go, if they do."""
        tokens = sum(map(self.bank.tokens, images))
        return None if self.room is None or tokens > self.room.shape[1] else self.room[:, :tokens]

    def _apart(self, images: tuple[int, ...], features: Any) -> Iterator[tuple[int, Any]]:
        """Each image's features, which do not keep the others'."""
        parts = features.split([self.bank.tokens(index) for index in images], dim=1)
        return ((index, part.clone()) for index, part in zip(images, parts, strict=True))


def _encode(model: Any, normalisation: Normalisation, patches: Any, **layout: Any) -> Any:
    return encode_images(model, normalisation(patches), **layout)
