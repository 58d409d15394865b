"""What the header of a PNG, JPEG, WebP or GIF file says, read without decoding a pixel."""

from __future__ import annotations

import struct
from dataclasses import dataclass

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp", "GIF": "image/gif"}
ALLOWED = "PNG, JPEG, WebP or GIF"


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about itself: sizes in pixels.

    `plain`: 8-bit grey or RGB, upright, one frame, nothing transparent, so that every engine sees the same picture.
    """

    format: str
    width: int
    height: int
    plain: bool = True

    @property
    def pixels(self) -> int:
        return self.width * self.height


class BadImage(Exception):
    """The file isn't a whole image of an allowed format; the message is for the client and quotes none of its bytes."""


# How much of a file's end is searched for its end mark, and how many segments may come before a JPEG's size: both keep
# a hostile file from costing more than an honest one.
TAIL = 8192
MAX_SEGMENTS = 1000
EXIF_LIMIT = 4096  # bytes of an Exif block; the orientation stands among its first entries


def inspect(file: bytes) -> ImageHeader:
    """Read format and size from a file's header and check that the file is whole.

    Raises BadImage for anything but a complete PNG, JPEG, WebP or GIF file.
    """
    head = file[:30]
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            header, end_mark = _png(file), b"IEND"
        elif head.startswith(b"\xff\xd8\xff"):
            header, end_mark = _jpeg(file), b"\xff\xd9"
        elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            header, end_mark = _webp(head), b""
            if len(file) < struct.unpack("<I", head[4:8])[0] + 8:
                raise BadImage("is cut short")
        elif head.startswith((b"GIF87a", b"GIF89a")):
            header, end_mark = _gif(head), b"\x3b"
        else:
            raise BadImage(f"is not a {ALLOWED} file")
    except (struct.error, IndexError):
        raise BadImage("is cut short") from None
    # Some cameras append previews after a JPEG's end, so a file without the mark in its tail is searched as a whole.
    if end_mark not in file[-TAIL:] and not (end_mark == b"\xff\xd9" and end_mark in file):
        raise BadImage("is cut short")
    return header


# Chunks of a PNG that change how it is to be shown: a transparent colour, Exif's orientation, an animation.
TELLING = (b"tRNS", b"eXIf", b"acTL")


def _png(file: bytes) -> ImageHeader:
    # https://www.w3.org/TR/png-3/#5DataRep: the signature, then chunks of length, type, data and checksum; IHDR first.
    if file[12:16] != b"IHDR":
        raise BadImage("is a PNG file with a broken header")
    width, height, depth, color = struct.unpack(">IIBB", file[16:26])
    plain = depth == 8 and color in (0, 2)  # grey and RGB; the others have a palette or an alpha channel
    at = 8
    for _ in range(MAX_SEGMENTS):
        length, kind = struct.unpack_from(">I4s", file, at)
        plain = plain and kind not in TELLING
        if kind == b"IDAT" or not plain:
            return ImageHeader("PNG", width, height, plain)
        at += 12 + length
    raise BadImage("is a PNG file with a broken header")


# Start-of-frame markers (ITU-T T.81 table B.1), without DHT (C4), JPG (C8) and DAC (CC), which share the range.
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(file: bytes) -> ImageHeader:
    at, orientation = 2, 1
    for _ in range(MAX_SEGMENTS):
        mark, marker, length = struct.unpack_from(">BBH", file, at)
        if mark != 0xFF:
            break
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in SOF:
            depth, height, width, components = struct.unpack_from(">BHHB", file, at + 4)
            plain = depth == 8 and components in (1, 3) and orientation == 1
            return ImageHeader("JPEG", width, height, plain)
        elif marker in (0xD9, 0xDA):  # the picture ends or its data starts before any frame header
            break
        else:
            if marker == 0xE1 and orientation == 1:
                orientation = _orientation(file[at + 4 : at + 2 + min(length, EXIF_LIMIT)])
            at += 2 + length
    raise BadImage("is a JPEG file with a broken header")


def _orientation(exif: bytes) -> int:
    """The orientation in a JPEG's APP1 segment: 1 to 8 (Exif 2.32 section 4.6.4), 1 if there is none."""
    if not exif.startswith(b"Exif\0\0"):
        return 1
    tiff = exif[6:]
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * min(entries, MAX_SEGMENTS), 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at)
            if tag == 0x0112 and kind == 3 and 1 <= value <= 8:
                return int(value)
    except struct.error:
        pass  # a broken block: viewers ignore it too
    return 1


def _webp(head: bytes) -> ImageHeader:
    # https://developers.google.com/speed/webp/docs/riff_container
    kind = head[12:16]
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", head[26:30]))
        plain = True
    elif kind == b"VP8L" and head[20] == 0x2F:
        bits = struct.unpack("<I", head[21:25])[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        plain = not bits >> 28 & 1  # may have transparent pixels
    elif kind == b"VP8X" and len(head) == 30:
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        plain = not head[20] & 0b0001_1010  # alpha, Exif, animation
    else:
        raise BadImage("is a WebP file with a broken header")
    return ImageHeader("WebP", width, height, plain)


def _gif(head: bytes) -> ImageHeader:
    # https://www.w3.org/Graphics/GIF/spec-gif89a.txt: signature, then the logical screen's width and height.
    width, height = struct.unpack("<HH", head[6:10])
    return ImageHeader("GIF", width, height, plain=False)
