"""Images and frames that rows name by URL: downloaded before training, where the recipe allows it, and cached."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx

from finetune.data.formats import Row
from finetune.data.image_cache import cache_image, cached_path
from finetune.data.row_media import Video
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe

MAX_BYTES = 50 * 2**20
TIMEOUT = 30.0  # seconds for a whole image
CONCURRENCY = 16  # downloads at once
SCHEMES = ("http://", "https://")


def fetch_images(rows: Iterator[Row | FinetuneError], recipe: Recipe) -> Iterator[Row | FinetuneError]:
    """The rows with files in place of URLs, in order; a row whose image cannot be downloaded becomes the error."""
    with ThreadPoolExecutor(CONCURRENCY) as pool, _client() as client:
        for batch in _batches(rows):
            if any(isinstance(row, Row) and (row.videos or any(map(_is_url, row.images))) for row in batch):
                yield from pool.map(lambda row: _fetch_row(row, recipe, client), batch)
            else:
                yield from batch


def _client() -> httpx.Client:
    limits = httpx.Limits(max_connections=CONCURRENCY)
    return httpx.Client(timeout=TIMEOUT, limits=limits, follow_redirects=True, headers={"User-Agent": "lensmith"})


def _batches(rows: Iterator[Row | FinetuneError]) -> Iterator[list[Row | FinetuneError]]:
    """The rows, some at a time. Where reading breaks off with an error, the rows before it still come first."""
    batch: list[Row | FinetuneError] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == 8 * CONCURRENCY:
                yield batch
                batch = []
    except FinetuneError:
        yield batch
        raise
    yield batch


def _is_url(image: Path | str) -> bool:
    return isinstance(image, str) and image.startswith(SCHEMES)


def _fetch_row(row: Row | FinetuneError, recipe: Recipe, client: httpx.Client) -> Row | FinetuneError:
    if isinstance(row, FinetuneError):
        return row

    def local(image: Path | str) -> Path | str:
        return _fetch(str(image), client) if _is_url(image) and recipe.allow_image_urls else image

    try:
        images = [local(image) for image in row.images]
        videos = [
            Video(tuple(local(frame) for frame in video.source)) if isinstance(video.source, tuple) else video
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


def _fetch(url: str, client: httpx.Client) -> Path:
    """The file of an image, downloaded the first time. Raises ValueError."""
    name = hashlib.sha256(url.encode()).hexdigest()
    path = cached_path(name)
    return path if path.exists() else cache_image(name, _download(url, client))


def _download(url: str, client: httpx.Client) -> bytes:
    """An image's bytes. Raises ValueError."""
    deadline = time.monotonic() + TIMEOUT
    data = bytearray()
    try:
        with client.stream("GET", url) as response:
            if response.is_error:
                reason = response.reason_phrase or "error"
                raise ValueError(f"the image {url[:80]} cannot be fetched: {reason} (HTTP {response.status_code})")
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ValueError(f"the image {url[:80]} has over {MAX_BYTES // 2**20} MiB")
                if time.monotonic() > deadline:
                    raise ValueError(f"the image {url[:80]} took longer than {TIMEOUT:.0f} seconds")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"the image {url[:80]} cannot be fetched: {str(error) or type(error).__name__}") from None
    return bytes(data)
