"""The worker processes that decode images."""

from __future__ import annotations

import asyncio
import struct
import sys
import time

import orjson

from gateway.errors import ApiError
from gateway.media.checks import ImagePart
from gateway.media.headers import BadImage, ImageHeader
from gateway.media.pixel_budget import PixelBudget

# Weight of the newest image in the mean of decoding times.
NEWEST = 0.1


class ImagePool:
    """Up to `workers` processes, started when first needed. One that dies or is too slow fails its own image only."""

    def __init__(self, workers: int, max_pixels: int, seconds: float, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting = 0  # images
        self._took = 0.0  # mean seconds of an image
        self._max_pixels = max_pixels
        self._seconds = seconds
        self._idle: asyncio.LifoQueue[asyncio.subprocess.Process | None] = asyncio.LifoQueue()
        for _ in range(workers):
            self._idle.put_nowait(None)
        self._workers = workers

    async def convert(self, base64_text: str, header: ImageHeader, size: tuple[int, int]) -> str:
        """The `data:` URI of the image as plain RGB of `size` pixels.

        Raises BadImage, or ApiError 503 if too many images wait for a worker.
        """
        if self._waiting >= self._max_waiting:
            wait = self._waiting * self._took / self._workers
            raise ApiError(503, "Too many images wait to be decoded.", code="queue_full", retry_after=wait)
        self._waiting += 1
        try:
            worker = await self._idle.get()
        finally:
            self._waiting -= 1
        started = time.monotonic()
        try:
            if worker is None or worker.returncode is not None:
                worker = await self._start()
            status, answer = await asyncio.wait_for(_ask(worker, base64_text, header, size), self._seconds)
        except asyncio.TimeoutError:
            _end(worker)
            worker = None
            raise BadImage(f"could not be decoded within {self._seconds:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            _end(worker)
            worker = None
            raise BadImage("could not be decoded") from None
        except BaseException:
            # The client went: what its worker is doing is of no use to anybody.
            _end(worker)
            worker = None
            raise
        finally:
            self._idle.put_nowait(worker)
            self._took += NEWEST * (time.monotonic() - started - self._took)
        if status != b"+":
            raise BadImage(answer.decode())
        return answer.decode("ascii")

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.media.worker", str(self._max_pixels)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the gateway; a worker ends when its standard input does
        )

    async def close(self) -> None:
        for _ in range(self._workers):
            _end(await self._idle.get())


def _end(worker: asyncio.subprocess.Process | None) -> None:
    if worker is not None and worker.returncode is None:
        worker.kill()


async def _ask(
    worker: asyncio.subprocess.Process, base64_text: str, header: ImageHeader, size: tuple[int, int]
) -> tuple[bytes, bytes]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    job = orjson.dumps({"expected": (header.width, header.height), "size": size})
    text = base64_text.encode("ascii")
    worker.stdin.write(struct.pack(">I", len(job)) + job + struct.pack(">I", len(text)))
    worker.stdin.write(text)
    await worker.stdin.drain()
    status = await worker.stdout.readexactly(1)
    (length,) = struct.unpack(">I", await worker.stdout.readexactly(4))
    return status, await worker.stdout.readexactly(length)


async def settle_images(
    parts: list[ImagePart], headers: list[ImageHeader], budget: PixelBudget, pool: ImagePool
) -> int:
    """Replace every image that engines would read differently, or that is larger than the model looks at: how many.

    Raises ApiError 400 that names the part.
    """
    changed = 0
    for part, header in zip(parts, headers, strict=True):
        size = budget.target(header, part.image.get("detail"))
        if size is None:
            continue
        try:
            part.image["url"] = await pool.convert(part.url[part.url.index(",") + 1 :], header, size)
        except BadImage as error:
            raise part.refused(error) from None
        changed += 1
    return changed
