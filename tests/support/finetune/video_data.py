"""Small video files and their frames, for the tests of this folder."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image


def drawing(number: int, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """[height, width, 3] uint8: a bright bar that moves right from frame to frame over a fading ground."""
    width, height = size
    frame = np.full((height, width, 3), (number * 11) % 120, np.uint8)
    at = number * 5 % (width - 8)
    frame[:, at : at + 8] = (250, 120, 20)
    return frame


def write_video(
    path: Path, frames: int = 20, size: tuple[int, int] = (64, 48), fps: int = 10, codec: str = "mpeg4"
) -> Path:
    """A video of `drawing`s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(drawing(number, size), format="rgb24")))
        container.mux(stream.encode())
    return path


def decoded(path: Path) -> list[Image.Image]:
    """All frames, by PyAV alone."""
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def write_frames(folder: Path, images: list[Image.Image]) -> list[Path]:
    """Frames as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths


def turn(path: Path, degrees: int) -> Path:
    """Has players turn an MP4's picture anticlockwise: writes the matrix of its only track."""
    data = bytearray(path.read_bytes())
    a, b, c, d = {90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}[degrees]
    struct.pack_into(">5i", data, data.index(b"tkhd") + 44, *(value << 16 for value in (a, b, 0, c, d)))
    path.write_bytes(data)
    return path


def spoil(path: Path) -> Path:
    """Overwrites an MP4's packets and leaves its header as it is."""
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = b"\xa5" * (end - start)
    path.write_bytes(data)
    return path
