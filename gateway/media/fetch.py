"""Fetches the images of a request that are given by http(s) URL, so that engines never see a URL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from gateway.config.settings import Settings
from gateway.media.checks import ImageFile, ImagePart
from gateway.media.headers import MEDIA_TYPES, BadImage, inspect
from gateway.media.hosts import ImageHosts, PublicResolver

REDIRECTS = (301, 302, 303, 307, 308)
MAX_CONNECTIONS = 64
HEADERS = {"user-agent": "lensmith", "accept": ", ".join(MEDIA_TYPES.values()), "accept-encoding": "identity"}


class ImageFetcher:
    """Downloads files from the hosts in `settings.image_hosts`. Make and close it in a running event loop."""

    def __init__(self, settings: Settings, resolver: AbstractResolver | None = None) -> None:
        """`resolver`: must itself refuse addresses that aren't public; PublicResolver by default."""
        self.hosts = ImageHosts(settings.image_hosts)
        self._settings = settings
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=resolver or PublicResolver(), use_dns_cache=False, limit=MAX_CONNECTIONS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            trust_env=False,  # no proxy, which would resolve the host again, and no .netrc
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self._session.close()

    def remote(self, parts: list[ImagePart]) -> list[ImagePart]:
        """Those of a request's images that have to be fetched. Raises ApiError 400 for one that can't be."""
        remote = [part for part in parts if part.url[:5].lower() != "data:"]
        for part in remote:
            try:
                self.hosts.check(part.url)
            except BadImage as error:
                raise part.refused(error) from None
        return remote

    async def fetch(self, parts: list[ImagePart], reserve: Callable[[int], None]) -> list[ImageFile]:
        """The files at every part's http(s) URL, at the same time.

        `reserve` is called with the bytes that are kept in memory, those of the base64 to come too, and may raise.
        Raises ApiError 400 that names the part.
        """
        tasks = [asyncio.create_task(self._fetch_part(part, reserve)) for part in parts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _fetch_part(self, part: ImagePart, reserve: Callable[[int], None]) -> ImageFile:
        try:
            data = await self._fetch(part.url, reserve)
            # What the server called it doesn't count: the file says itself what it is.
            header = await asyncio.to_thread(inspect, data)
        except BadImage as error:
            raise part.refused(error) from None
        reserve(4 * -(-len(data) // 3) - len(data))
        return ImageFile(data, header)

    async def _fetch(self, text: str, reserve: Callable[[int], None]) -> bytes:
        """The file at a URL. Raises BadImage."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.download_timeout
        url = self.hosts.check(text)
        for _ in range(self._settings.max_redirects + 1):
            left = aiohttp.ClientTimeout(total=max(0.001, end - loop.time()))
            try:
                async with self._session.get(url, timeout=left, allow_redirects=False) as answer:
                    if answer.status == 200:
                        return await self._read(answer, reserve)
                    if answer.status not in REDIRECTS:
                        raise BadImage(f"could not be fetched: its server answered HTTP {answer.status}")
                    location = answer.headers.get("location", "")
            except asyncio.TimeoutError:
                seconds = self._settings.download_timeout
                raise BadImage(f"could not be fetched within {seconds:g} s") from None
            except (aiohttp.ClientError, OSError, ValueError):
                raise BadImage("could not be fetched: its server cannot be reached or broke off") from None
            url = self._next(url, location)
        raise BadImage(f"could not be fetched: more than {self._settings.max_redirects} redirects")

    def _next(self, url: URL, location: str) -> URL:
        """Where a redirect leads; checked like the first URL. Raises BadImage."""
        try:
            target = str(url.join(URL(location, encoded=True))) if location else ""
        except ValueError:
            target = ""
        if not target:
            raise BadImage("could not be fetched: its server redirects to nowhere")
        return self.hosts.check(target)

    async def _read(self, answer: aiohttp.ClientResponse, reserve: Callable[[int], None]) -> bytes:
        limit = self._settings.max_download_bytes
        too_large = BadImage(f"is larger than {limit} bytes, the limit for an image that is fetched")
        if (answer.content_length or 0) > limit:
            raise too_large
        chunks: list[bytes] = []
        size = 0
        while chunk := await answer.content.readany():
            size += len(chunk)
            if size > limit:
                raise too_large
            reserve(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)
