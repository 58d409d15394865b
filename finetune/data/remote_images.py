"""Images and frames that rows name by URL: fetched before training, where the recipe allows it, and kept."""

from __future__ import annotations

import hashlib
import os
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from finetune.data.formats import Row
from finetune.data.row_media import Video
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe

MAX_BYTES = 50 * 2**20
SECONDS = 30.0  # for a whole image
AT_ONCE = 16
SCHEMES = ("http://", "https://")


def fetch_images(rows: Iterator[Row | FinetuneError], recipe: Recipe) -> Iterator[Row | FinetuneError]:
    """The rows with files in place of URLs, in order; a row whose image cannot be had becomes the error."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for batch in _batches(rows):
            if any(isinstance(row, Row) and (row.videos or any(map(_is_url, row.images))) for row in batch):
                yield from pool.map(lambda row: _fetch_row(row, recipe), batch)
            else:
                yield from batch


def _batches(rows: Iterator[Row | FinetuneError]) -> Iterator[list[Row | FinetuneError]]:
    """The rows some at a time; those before a file breaks off come before the error."""
    batch: list[Row | FinetuneError] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == 8 * AT_ONCE:
                yield batch
                batch = []
    except FinetuneError:
        yield batch
        raise
    yield batch


def _is_url(image: Path | str) -> bool:
    return isinstance(image, str) and image.startswith(SCHEMES)


def _fetch_row(row: Row | FinetuneError, recipe: Recipe) -> Row | FinetuneError:
    if isinstance(row, FinetuneError):
        return row
    try:
        images = [_local(image, recipe) for image in row.images]
        videos = [
            Video(tuple(_local(frame, recipe) for frame in video.source)) if isinstance(video.source, tuple) else video
            for video in row.videos
        ]
    except ValueError as error:
        return FinetuneError(f"{row.source}: {error}.")
    frames = [frame for video in videos if isinstance(video.source, tuple) for frame in video.source]
    refused = next((image for image in images + frames if _is_url(image)), None)
    if refused is not None:
        return FinetuneError(
            f"{row.source}: the image {str(refused)[:80]} is a URL; set allow_image_urls: true, or download it."
        )
    return replace(row, images=images, videos=videos)


def _local(image: Path | str, recipe: Recipe) -> Path | str:
    return fetch(image) if _is_url(image) and recipe.allow_image_urls else image


def fetch(url: Path | str) -> Path:
    """The file of an image, fetched the first time. Raises ValueError."""
    url = str(url)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lensmith" / "images"
    path = root / hashlib.sha256(url.encode()).hexdigest()
    if path.exists():
        return path
    data = _get(url)
    root.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
    partial.write_bytes(data)
    partial.replace(path)
    return path


def _get(url: str) -> bytes:
    ends = time.monotonic() + SECONDS
    request = urllib.request.Request(url, headers={"User-Agent": "lensmith"})
    try:
        # Only http and https: urllib's own opener would follow a redirect to ftp too.
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPErrorProcessor,
            urllib.request.HTTPDefaultErrorHandler,
        ):
            opener.add_handler(handler())
        with opener.open(request, timeout=SECONDS) as answer:
            data = b""
            while chunk := answer.read1(2**16):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ValueError(f"the image {url[:80]} has over {MAX_BYTES // 2**20} MiB")
                if time.monotonic() > ends:
                    raise ValueError(f"the image {url[:80]} took longer than {SECONDS:.0f} seconds")
            return data
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"the image {url[:80]} cannot be fetched: {reason}") from None
