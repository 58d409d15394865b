"""The worker processes that decode images."""

from __future__ import annotations

import asyncio
import time

from gateway.errors import ApiError
from gateway.media.headers import BadImage, ImageHeader
from gateway.media.messages import pack_head, receive_message
from modelfiles.hardware.python_child import module_command

# Weight of the newest image in the mean of decoding times.
NEWEST = 0.1


class ImagePool:
    """Up to `workers` processes, started when first needed. One that dies or is too slow fails its own image only."""

    def __init__(self, workers: int, max_pixels: int, timeout: float, max_waiting: int) -> None:
        """`max_pixels` of an image set a worker's memory limit; `timeout`: seconds for an image."""
        self._max_waiting = max_waiting
        self._waiting = 0  # images
        self._mean_seconds = 0.0  # of an image
        self._max_pixels = max_pixels
        self._timeout = timeout
        self._idle: asyncio.LifoQueue[asyncio.subprocess.Process | None] = asyncio.LifoQueue()
        for _ in range(workers):
            self._idle.put_nowait(None)
        self._workers = workers

    async def convert(self, file: bytes, header: ImageHeader, size: tuple[int, int]) -> tuple[str, bytes]:
        """(media type, file) of the image as plain RGB of `size` pixels.

        Raises BadImage, or ApiError 503 if too many images wait for a worker.
        """
        if self._waiting >= self._max_waiting:
            wait = self._waiting * self._mean_seconds / self._workers
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
            answer, new = await asyncio.wait_for(_ask(worker, file, header, size), self._timeout)
        except asyncio.TimeoutError:
            _end(worker)
            worker = None
            raise BadImage(f"could not be decoded within {self._timeout:g} s") from None
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
            self._mean_seconds += NEWEST * (time.monotonic() - started - self._mean_seconds)
        if "error" in answer:
            raise BadImage(answer["error"])
        return answer["media_type"], new

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *module_command("gateway.media.worker"),
            str(self._max_pixels),
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
    worker: asyncio.subprocess.Process, file: bytes, header: ImageHeader, size: tuple[int, int]
) -> tuple[dict[str, str], bytes]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(pack_head({"expected": (header.width, header.height), "size": size}, file))
    worker.stdin.write(file)
    await worker.stdin.drain()
    return await receive_message(worker.stdout)
