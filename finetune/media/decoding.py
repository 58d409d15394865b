"""All pixels of a dataset read once, to find the files that no training could read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from finetune.data.row_media import Video
from finetune.errors import FinetuneError
from finetune.media.bank import Bank
from finetune.media.image_files import decode, image_size

AT_ONCE = 256  # on their way to the threads, which decode outside Python's lock


def broken_media(bank: Bank) -> dict[int, str]:
    """What is wrong with images and videos, by their index in the bank: each is decoded whole."""
    indices = iter(range(len(bank.paths)))
    found: dict[int, str] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        while batch := list(islice(indices, AT_ONCE)):
            found |= {index: wrong for index, wrong in zip(batch, _read(pool, bank, batch), strict=True) if wrong}
    return found


def _read(pool: ThreadPoolExecutor, bank: Bank, batch: list[int]) -> Iterator[str]:
    return pool.map(partial(_wrong, bank), batch)


def _wrong(bank: Bank, index: int) -> str:
    """What is wrong with one; empty if nothing is."""
    medium = bank.paths[index]
    try:
        if isinstance(medium, Video):
            bank.clips[index].frames()
        elif decode(medium).size != image_size(medium):
            return f"The image {medium} is not of the size that its header says."
    except (FinetuneError, ValueError) as error:
        return str(error)
    return ""
