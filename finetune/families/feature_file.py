"""Features of images on the disk, where memory would not hold them.

The file is in the run's own folder and has no name: no other run can read it, nothing of it can be out of date, and it
is gone when the run ends, however that happens. Its space is taken beforehand, so that a full disk is noticed then.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

FREE_SHARE = 0.2  # of the disk's free space that is left for checkpoints and others


class FeatureFile:
    """A mapping of image index to features on the CPU, of the shapes that were said. Raises OSError if it cannot be."""

    def __init__(self, folder: Path, shapes: Mapping[int, tuple[int, ...]], dtype: torch.dtype) -> None:
        self.shapes, self.dtype = shapes, dtype
        self.starts: dict[int, int] = {}
        size = 0
        for index, shape in shapes.items():
            self.starts[index] = size
            size += math.prod(shape) * dtype.itemsize
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            self.mapped = mmap.mmap(file.fileno(), size)
        self.written: set[int] = set()

    def __contains__(self, index: int) -> bool:
        return index in self.written

    def __getitem__(self, index: int) -> Any:
        shape = self.shapes[index]
        flat = torch.frombuffer(self.mapped, dtype=self.dtype, count=math.prod(shape), offset=self.starts[index])
        return flat.view(shape)

    def update(self, features: Iterable[tuple[int, Any]]) -> None:
        for index, values in features:
            self[index].copy_(values)
            self.written.add(index)

    def prefetch(self, index: int) -> None:
        """Has the disk read an image's features, without waiting for them."""
        start = self.starts[index] // mmap.PAGESIZE * mmap.PAGESIZE
        end = self.starts[index] + math.prod(self.shapes[index]) * self.dtype.itemsize
        self.mapped.madvise(mmap.MADV_WILLNEED, start, end - start)


def file_for(
    folder: Path | None, shapes: Mapping[int, tuple[int, ...]], dtype: torch.dtype, processes: int
) -> FeatureFile | None:
    """A file in the folder, if there is one and its disk has room for those of all `processes` on this machine."""
    needed = sum(map(math.prod, shapes.values())) * dtype.itemsize
    try:
        if folder is None or needed * processes > (1 - FREE_SHARE) * shutil.disk_usage(folder).free:
            return None
        return FeatureFile(folder, shapes, dtype)
    except OSError:
        return None
