"""A request's images on their way from the client to the engine: read once, decoded if they must be, written once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from gateway.config.settings import Settings
from gateway.media.checks import ImageFile, ImagePart, check_pixels, check_size, read_data_uri, write_data_uri
from gateway.media.fetch import ImageFetcher
from gateway.media.headers import MEDIA_TYPES, BadImage, ImageHeader
from gateway.media.pixel_budget import PixelBudget
from gateway.media.pool import ImagePool

# Of more characters or bytes than this, base64 and checksums would keep the event loop for a noticeable time.
LARGE = 1 << 20

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class RequestImage:
    """An image that was read and is within the limits.

    file: its bytes, empty if the part's URI is sent on as it is. size: (width, height) to give it, None if its pixels
    stay as they are. fetched: from an http(s) URL.
    """

    part: ImagePart
    header: ImageHeader
    file: bytes
    size: tuple[int, int] | None
    fetched: bool = False


async def read_images(
    parts: list[ImagePart],
    settings: Settings,
    budget: PixelBudget,
    fetcher: ImageFetcher | None,
    reserve: Callable[[int], None],
) -> list[RequestImage]:
    """Decode the `data:` URIs, fetch the others, and check all against the limits.

    The URI of an image whose bytes are kept is dropped, so that it is in memory once. `reserve` is called with the
    bytes of what is fetched, and may raise. Raises ApiError 400 that names the part.
    """
    remote = fetcher.remote(parts) if fetcher is not None else []
    images: dict[int, RequestImage] = {}  # by the id of their part
    for part in parts:
        if not any(part is other for other in remote):
            try:
                file = await _off_loop(len(part.url), read_data_uri, part.url)
                images[id(part)] = _checked(part, file, settings, budget)
            except BadImage as error:
                raise part.refused(error) from None
    if fetcher is not None and remote:
        for part, file in zip(remote, await fetcher.fetch(remote, reserve), strict=True):
            try:
                images[id(part)] = _checked(part, file, settings, budget)
            except BadImage as error:
                raise part.refused(error) from None
            images[id(part)].fetched = True
    read = [images[id(part)] for part in parts]
    check_pixels([image.header for image in read], settings)
    return read


def _checked(part: ImagePart, file: ImageFile, settings: Settings, budget: PixelBudget) -> RequestImage:
    check_size(file.header, settings)
    size = budget.target(file.header, part.image.get("detail"))
    if file.clean_uri and size is None:
        return RequestImage(part, file.header, b"", None)
    part.image["url"] = ""
    return RequestImage(part, file.header, file.data, size)


async def write_images(images: list[RequestImage], pool: ImagePool) -> bool:
    """Give every part the URI that the engine gets; whether any image was decoded for it.

    Raises ApiError: 400 that names the part, 503 if too many images wait for a worker.
    """
    decoded = False
    for image in images:
        media_type, file = MEDIA_TYPES[image.header.format], image.file
        image.file = b""
        if image.size is not None:
            try:
                media_type, file = await pool.convert(file, image.header, image.size)
            except BadImage as error:
                raise image.part.refused(error) from None
            decoded = True
        if file:
            image.part.image["url"] = await _off_loop(len(file), write_data_uri, media_type, file)
    return decoded


async def _off_loop(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns, done in a thread if its input is large."""
    if size < LARGE:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
