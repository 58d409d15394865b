"""Images and frames that rows name by URL: downloaded before training, where the recipe allows it, and cached."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import httpx

from finetune.data.formats import Row
from finetune.data.image_cache import cache_image, cached_path
from finetune.data.row_media import Video
from finetune.recipe.schema import Recipe

MAX_BYTES = 50 * 2**20
TIMEOUT = 30.0  # seconds for a whole image
CONCURRENCY = 16  # downloads at once
SCHEMES = ("http://", "https://")


def fetch_images(rows: Iterable[Row], recipe: Recipe) -> Iterator[str | None]:
    """Downloads the images that rows name by URL: for each row what is wrong with it, or None."""
    with ThreadPoolExecutor(CONCURRENCY) as pool, _client() as client:
        rows = iter(rows)
        while batch := list(islice(rows, 8 * CONCURRENCY)):
            yield from pool.map(lambda row: _fetch_row(row, recipe, client), batch)


def is_remote(row: Row) -> bool:
    """Whether a row has an image or a frame by URL."""
    return any(map(_is_url, _pictures(row)))


def downloaded(row: Row) -> Row:
    """The row with the files of its images in place of their URLs, once `fetch_images` has downloaded them."""
    if not is_remote(row):
        return row
    videos = [
        Video(tuple(map(_local, video.source))) if isinstance(video.source, tuple) else video for video in row.videos
    ]
    return replace(row, images=list(map(_local, row.images)), videos=videos)


def _local(image: Path | str) -> Path | str:
    return _cached(str(image)) if _is_url(image) else image


def _pictures(row: Row) -> list[Path | str]:
    """A row's images, and its videos' frames."""
    frames = [frame for video in row.videos if isinstance(video.source, tuple) for frame in video.source]
    return row.images + frames


def _cached(url: str) -> Path:
    return cached_path(hashlib.sha256(url.encode()).hexdigest())


def _client() -> httpx.Client:
    limits = httpx.Limits(max_connections=CONCURRENCY)
    return httpx.Client(timeout=TIMEOUT, limits=limits, follow_redirects=True, headers={"User-Agent": "lensmith"})


def _is_url(image: Path | str) -> bool:
    return isinstance(image, str) and image.startswith(SCHEMES)


def _fetch_row(row: Row, recipe: Recipe, client: httpx.Client) -> str | None:
    for url in map(str, filter(_is_url, _pictures(row))):
        if not recipe.allow_image_urls:
            return f"{row.source}: the image {url[:80]} is a URL; set allow_image_urls: true, or download it."
        try:
            _fetch(url, client)
        except ValueError as error:
            return f"{row.source}: {error}."
    return None


def _fetch(url: str, client: httpx.Client) -> None:
    """Downloads an image if it is not there yet. Raises ValueError."""
    path = _cached(url)
    if not path.exists():
        cache_image(path.name, _download(url, client))


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
