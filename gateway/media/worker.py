"""The process that decodes images: one at a time, from standard input to standard output, within a memory limit.

Whatever a hostile file does to a decoder, it does it here. A message is a length (4 bytes, big endian) and that many
bytes. A request is two of them: JSON with the `expected` and the new `size`, and the file in base64. An answer is a
status byte, `+` or `-`, and one message: the new file's `data:` URI, or what is wrong with the old one.
"""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
from typing import BinaryIO

import pybase64
from PIL import Image, ImageOps

# What Python and Pillow need, and per pixel: the decoded picture (up to 4 bytes), its conversion and the resized one.
BASE_MEMORY = 512 * 1024 * 1024
BYTES_PER_PIXEL = 16

# Pillow's own limit only warns; the size is compared with the checked one before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
LOSSY = {"JPEG", "WEBP"}
JPEG_QUALITY = 95
ORIENTATION = 0x0112  # Exif's tag; 5 to 8 turn by 90 degrees


class Broken(Exception):
    """The message completes the sentence 'The image at … '."""


def convert(file: bytes, expected: tuple[int, int], size: tuple[int, int]) -> tuple[str, bytes]:
    """(media type, file): the first frame, upright, 8-bit RGB on white, `size` (width, height) pixels large.

    `expected` is the size that the header promised. Both sizes count before the picture is turned upright.
    Raises Broken.
    """
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            if image.size != expected:
                raise Broken("has another size than its header says")
            lossy = image.format in LOSSY
            if image.format == "JPEG":
                # Lets libjpeg skip work for a much smaller result; twice the size leaves the resampling its quality.
                image.draft(None, (2 * size[0], 2 * size[1]))
            if image.getexif().get(ORIENTATION, 1) >= 5:
                size = size[1], size[0]
            picture = rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise Broken("needs too much memory") from None
    except Broken:
        raise
    except Exception:
        # Pillow raises many types, and its messages may quote the file or name addresses.
        raise Broken("is broken") from None
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    if lossy:
        picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return "image/jpeg", out.getvalue()
    picture.save(out, "PNG", compress_level=1)
    return "image/png", out.getvalue()


def rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB; transparency shows white."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's conversion would clip it to white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def read_message(stream: BinaryIO) -> bytes | None:
    """The next message; None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    return stream.read(struct.unpack(">I", head)[0])


def main() -> None:
    limit = BASE_MEMORY + BYTES_PER_PIXEL * int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (head := read_message(source)) is not None:
        job, text = json.loads(head), read_message(source)
        try:
            kind, file = convert(pybase64.b64decode(text or b""), tuple(job["expected"]), tuple(job["size"]))
            status, answer = b"+", f"data:{kind};base64,".encode() + pybase64.b64encode(file)
        except Broken as error:
            status, answer = b"-", str(error).encode()
        except MemoryError:
            status, answer = b"-", b"needs too much memory"
        sink.write(status + struct.pack(">I", len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    main()
