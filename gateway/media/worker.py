"""The process that decodes images: one at a time, from standard input to standard output, within a memory limit.

Whatever a hostile file does to a decoder, it does it here. See `messages` for how messages are written. A request's
header has the `expected` size and the new `size`, and its bytes are the file. An answer's header has the `media_type`
of the new file, or the `error`.
"""

from __future__ import annotations

import io
import math
import os
import resource
import sys

from PIL import Image

from gateway.media.messages import pack_head, read_message
from modelfiles.images.orientation import orientation
from modelfiles.images.pixels import rgb, turned

# What Python and Pillow need, and per pixel: the decoded picture (up to 4 bytes), its conversion and the resized one.
BASE_MEMORY = 512 * 1024 * 1024
BYTES_PER_PIXEL = 16

# Pillow's own limit only warns; the size is compared with the checked one before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
JPEGS = ("JPEG", "MPO")  # MPO: a JPEG with further pictures behind the first, as phones write
LOSSY = (*JPEGS, "WEBP")
JPEG_QUALITY = 95
# Before the bicubic resize, the JPEG decoder's own scaling (by 2, 4 or 8) or an average of neighbouring pixels makes a
# large picture smaller, but leaves it at least this many times as large as the target.
# docs/decisions/2026-11-28-large-photos.md has what both save and cost.
DRAFT_RATIO = 1.5
REDUCING_GAP = 1.5
# Behind an engine's threads, which keep its GPU busy: docs/decisions/2026-11-28-cores-for-images.md.
NICENESS = 5


class BrokenImage(Exception):
    """The message completes the sentence 'The image at … '."""


def convert(file: bytes, expected: tuple[int, int], size: tuple[int, int]) -> tuple[str, bytes]:
    """(media type, file) of the picture that `decode` makes. Raises BrokenImage."""
    picture, lossy = decode(file, expected, size)
    out = io.BytesIO()
    if lossy:
        picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return "image/jpeg", out.getvalue()
    picture.save(out, "PNG", compress_level=1)
    return "image/png", out.getvalue()


def decode(file: bytes, expected: tuple[int, int], size: tuple[int, int]) -> tuple[Image.Image, bool]:
    """The first frame, upright, 8-bit RGB on white, `size` (width, height) pixels large; and whether the file is lossy.

    `expected` is the size that the header promised. Both sizes count before the picture is turned upright.
    Raises BrokenImage.
    """
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            if image.size != expected:
                raise BrokenImage("has another size than its header says")
            if image.format in JPEGS:
                image.draft(None, (math.ceil(DRAFT_RATIO * size[0]), math.ceil(DRAFT_RATIO * size[1])))
            image.load()
            turn, lossy = orientation(image), image.format in LOSSY
            picture = rgb(image)
    except MemoryError:
        raise BrokenImage("needs too much memory") from None
    except BrokenImage:
        raise
    except Exception:
        # Pillow raises many types, and its messages may quote the file or name addresses.
        raise BrokenImage("is broken") from None
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    return turned(picture, turn), lossy


def main() -> None:
    limit = BASE_MEMORY + BYTES_PER_PIXEL * int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.nice(NICENESS)
    while (message := read_message(sys.stdin.buffer)) is not None:
        job, file = message
        try:
            media_type, new = convert(file, tuple(job["expected"]), tuple(job["size"]))
            answer = {"media_type": media_type}
        except BrokenImage as error:
            answer, new = {"error": str(error)}, b""
        except MemoryError:
            answer, new = {"error": "needs too much memory"}, b""
        del message, file
        sys.stdout.buffer.write(pack_head(answer, new))
        sys.stdout.buffer.write(new)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
