"""WebDataset's shards: tar files in which the files of one sample follow each other under one name.

The format: https://github.com/webdataset/webdataset (`000.jpg`, `000.txt`, `000.json` are one sample).
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from finetune.data.image_cache import cache_image
from finetune.errors import FinetuneError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("txt", "text", "caption")
MAX_FILE = 50 * 2**20  # bytes of one file in a shard


def read_shard(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a shard as records: the fields of its JSON file, its images as paths, its text.

    Images are unpacked into the cache of images. Raises FinetuneError naming the shard and the file.
    """
    try:
        with tarfile.open(path) as shard:
            members = (member for member in shard if member.isfile())
            for name, files in groupby(members, key=lambda member: _split(member.name)[0]):
                yield _sample(path, name, shard, list(files))
    except (tarfile.TarError, EOFError) as error:
        raise FinetuneError(f"The data file {path} is not a readable tar file: {error}.") from None


def _split(name: str) -> tuple[str, str]:
    """("data/000", "seg.png") for data/000.seg.png: a sample's name ends at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _sample(path: Path, name: str, shard: tarfile.TarFile, files: list[tarfile.TarInfo]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    images: list[str] = []
    for file in files:
        kind = _split(file.name)[1].rpartition(".")[2]
        if kind not in (*IMAGES, *TEXTS, "json"):
            record[kind] = file.name  # not read, but named among the columns that are not used
            continue
        if file.size > MAX_FILE:
            raise FinetuneError(f"{path}, {file.name}: the file has over {MAX_FILE // 2**20} MiB.")
        reader = shard.extractfile(file)
        data = reader.read() if reader else b""
        if kind in IMAGES:
            images.append(str(cache_image(hashlib.sha256(data).hexdigest(), data)))
            continue
        try:
            value = data.decode("utf-8-sig")
            record |= json.loads(value) if kind == "json" else {"text": value.strip()}
        except (ValueError, TypeError, RecursionError) as error:
            raise FinetuneError(f"{path}, {file.name}: not {kind}: {error}.") from None
    if images:
        record |= {"image": images[0]} if len(images) == 1 else {"images": images}
    if not record:
        raise FinetuneError(f"{path}, {name}: the sample has no image, text or JSON file.")
    return record
