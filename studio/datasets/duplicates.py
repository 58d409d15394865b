"""The job that finds pictures which are the same or nearly so: python -m studio.datasets.duplicates DATASET_FOLDER

Such pictures in training and validation make the validation look better than it is. Pictures are compared by the
perceptual hash and the colour hash of ImageHash; rows with pictures of one group get the group's number as `twins`.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np

from finetune.errors import FinetuneError
from finetune.media.image_files import thumbnail
from modelfiles import counted
from studio.datasets.index import IndexedRow, RowIndex
from studio.datasets.records import picture_names
from studio.datasets.store import Dataset
from studio.datasets.versions import draft_of
from studio.jobs.progress import Progress

HASH_SIDE = 16  # 256 bits of the picture's coarse brightness
SAMPLE = 64  # pixels of the side that is hashed
MAX_DISTANCE = 12  # bits in which two pictures may differ
MAX_COLOUR_DISTANCE = 4  # and in their colours
BUCKET = 500  # pictures of one band that are compared with each other; more have hardly any content


def hash_picture(path: Path) -> tuple[bytes, bytes] | None:
    """The bits of (perceptual hash, colour hash), packed; None for a picture that cannot be read."""
    try:
        small = thumbnail(path, SAMPLE * 4)
    except (FinetuneError, OSError):
        return None
    bits = (imagehash.phash(small, HASH_SIDE).hash, imagehash.colorhash(small).hash)
    form, colour = (np.packbits(found.flatten()).tobytes() for found in bits)
    return form, colour


def group(hashes: dict[str, tuple[bytes, bytes]]) -> list[list[str]]:
    """Names whose hashes are nearly equal, directly or by others between them; groups of two and more."""
    leader = {name: name for name in hashes}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    same: dict[tuple[bytes, bytes], list[str]] = defaultdict(list)
    for name, found in hashes.items():
        same[found].append(name)
    for names in same.values():
        for other in names[1:]:
            leader[find(other)] = find(names[0])
    for one, second in _candidates(list(same)):
        if _distance(one[0], second[0]) <= MAX_DISTANCE and _distance(one[1], second[1]) <= MAX_COLOUR_DISTANCE:
            leader[find(same[second][0])] = find(same[one][0])
    groups: dict[str, list[str]] = defaultdict(list)
    for name in hashes:
        groups[find(name)].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _candidates(hashes: list[tuple[bytes, bytes]]) -> Iterator[tuple[tuple[bytes, bytes], tuple[bytes, bytes]]]:
    """Pairs of hashes that agree in one of MAX_DISTANCE + 1 bands: no pair within MAX_DISTANCE is missed."""
    bits = np.array([np.unpackbits(np.frombuffer(form, np.uint8)) for form, _ in hashes]).reshape(len(hashes), -1)
    for band in np.array_split(np.arange(bits.shape[1]), MAX_DISTANCE + 1):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for n, key in enumerate(bits[:, band]):
            buckets[key.tobytes()].append(n)
        for members in buckets.values():
            for one, other in itertools.combinations(members[:BUCKET], 2):
                yield hashes[one], hashes[other]


def _distance(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def mark_twins(index: RowIndex, groups: Iterable[list[str]]) -> int:
    """Write the groups of pictures into the rows that show them; how many groups there are.

    A single picture is a group of its own if rows of training and of validation show it.
    """
    number_of = {name: number for number, names in enumerate(groups) for name in names}
    alone = itertools.count(len(number_of))
    rows: dict[int, list[IndexedRow]] = defaultdict(list)
    for row in index.all_rows():
        names = picture_names(row.record)
        if names:
            known = next((name for name in names if name in number_of), names[0])
            rows[number_of.setdefault(known, next(alone))].append(row)
    kept = [
        [row.number for row in members]
        for members in rows.values()
        if len({row.split for row in members}) > 1 or len({picture_names(row.record)[0] for row in members}) > 1
    ]
    with index.open(write=True) as connection:
        connection.execute("UPDATE rows SET twins = NULL WHERE twins IS NOT NULL")
        pairs = [(number, member) for number, members in enumerate(kept, 1) for member in members]
        connection.executemany("UPDATE rows SET twins = ? WHERE number = ?", pairs)
    return len(kept)


def main(folder: Path) -> None:
    dataset, progress = Dataset(folder), Progress()
    index, base = draft_of(dataset), dataset.version().folder
    names = sorted({name for row in index.all_rows() for name in picture_names(row.record)})
    hashes: dict[str, tuple[bytes, bytes]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = (Path(os.path.normpath(base / name)) for name in names)
        for done, (name, found) in enumerate(zip(names, pool.map(hash_picture, paths), strict=True), 1):
            progress.say("hash", done, len(names))
            if found is not None:
                hashes[name] = found
    print(f"{counted(mark_twins(index, group(hashes)), 'group')} of {counted(len(names), 'picture')}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
