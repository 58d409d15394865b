"""Video files by PyAV: what a container's header says, and the frames that are asked for.

A file from outside may lie or attack, so the formats that name other files (playlists, lists of pictures) are not read,
sizes are limited before anything is decoded, and frames that differ from what the header said are errors.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from modelfiles import counted

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,gif,h264,hevc"
MAX_FRAMES = 2**20  # of a file: 9.7 hours at 30 a second
MISSING = 2  # frames that a sound file may have fewer than its header says: edit lists and rounded durations
TURNS = {  # a track's matrix (a, b, c, d) in signs, and how to turn its frames as a player does
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Header:
    """A video as its header describes it.

    width, height: pixels of a frame, turned upright; frames: how many; fps: their mean number a second; turn: what to
    do to a decoded frame so that it is upright.
    """

    width: int
    height: int
    frames: int
    fps: float
    turn: Image.Transpose | None = None


def read_header(path: Path) -> Header:
    """Reads the container's header, and counts packets if that says neither frames nor duration; decodes nothing.

    Raises ValueError.
    """
    import av

    with _opened(path) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        if not (width and height):
            raise ValueError("its header gives no size of the frames; convert it to MP4")
        if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"its frames have {width}x{height} pixels, over {Image.MAX_IMAGE_PIXELS:,}")
        seconds = 0.0
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / av.time_base
        fps = float(stream.average_rate or stream.base_rate or 0)
        frames = stream.frames or round(seconds * fps)
        if frames <= 0:
            for packet in container.demux(stream):
                frames += packet.size > 0
                if frames > MAX_FRAMES:
                    break
        if not 0 < frames <= MAX_FRAMES:
            raise ValueError(f"it has {max(0, frames):,} frames; 1 to {MAX_FRAMES:,} can be read")
        if seconds > 0 and (stream.frames or not fps):
            fps = frames / seconds
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError("its header gives neither a duration nor a frame rate; convert it to MP4")
        turn = _turn(path) if "mp4" in container.format.name else None
    if turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270):
        width, height = height, width
    return Header(width, height, frames, fps, turn)


def read_frames(path: Path, header: Header, wanted: Sequence[int]) -> Iterator[Image.Image]:
    """The upright RGB frames of the wanted numbers, which rise. Frames after the last one are not decoded.

    Where the stream ends up to MISSING frames early its last frame stands in. Raises ValueError.
    """
    with _opened(path) as (container, stream):
        # A stream may turn larger than its header said; decoders need some pixels around a frame.
        stream.codec_context.options = {"max_pixels": str((header.width + 256) * (header.height + 256))}
        count, number, last = 0, -1, None
        for number, frame in enumerate(container.decode(stream)):
            last = frame
            while count < len(wanted) and wanted[count] == number:
                yield _upright(frame, header)
                count += 1
            if count == len(wanted):
                return
        if last is None or number + 1 < header.frames - MISSING:
            raise ValueError(f"its header says {counted(header.frames, 'frame')}, but only {number + 1} can be decoded")
        for _ in wanted[count:]:
            yield _upright(last, header)


def _upright(frame: Any, header: Header) -> Image.Image:
    image: Image.Image = frame.to_image()
    if header.turn is not None:
        image = image.transpose(header.turn)
    if image.size != (header.width, header.height):
        raise ValueError(
            f"a frame has {image.width}x{image.height} pixels, but the header said {header.width}x{header.height}"
        )
    return image


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream). Raises ValueError, also for what goes wrong inside."""
    try:
        import av
    except ImportError:
        raise ValueError("PyAV is missing, which reads videos: pip install av") from None
    if not path.is_file():
        raise ValueError("the file does not exist")
    try:
        # "file:", or a name with a colon would be a protocol.
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        with av.open(f"file:{path}", options=options) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError, EOFError, OverflowError) as error:
        raise ValueError(f"the file is not a readable video ({getattr(error, 'strerror', None) or error})") from None


def _turn(path: Path) -> Image.Transpose | None:
    """How a player turns an MP4's or MOV's picture: its video track's matrix, which PyAV shows only by decoding."""
    with path.open("rb") as file:
        for start, end in _boxes(file, b"moov", 0, path.stat().st_size):
            for track in _boxes(file, b"trak", start, end):
                if not any(_handler(file, *box) == b"vide" for mdia in _boxes(file, b"mdia", *track)
                           for box in _boxes(file, b"hdlr", *mdia)):  # fmt: skip
                    continue
                for start, _ in _boxes(file, b"tkhd", *track):
                    file.seek(start)
                    head = file.read(100)
                    matrix = 52 if head[:1] == b"\1" else 40
                    if len(head) < matrix + 20:
                        return None
                    a, b, _, c, d = struct.unpack(">5i", head[matrix : matrix + 20])
                    a, b, c, d = ((value > 0) - (value < 0) for value in (a, b, c, d))
                    return TURNS.get((a, b, c, d))
    return None


def _handler(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start + 8)
    return file.read(4)


def _boxes(file: BinaryIO, kind: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the contents of the boxes of a kind between two offsets of an ISO media file."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        size, inside = struct.unpack(">I", head[:4])[0], start + 8
        if size == 1 and len(head) == 16:
            size, inside = struct.unpack(">Q", head[8:])[0], start + 16
        size = size or end - start  # 0: to the end
        if size < inside - start:
            return
        if head[4:8] == kind:
            yield inside, min(start + size, end)
        start += size
