"""What a PNG, JPEG, WebP or GIF file says of itself, and whether it is whole, without decoding a pixel.

Engines read files with decoders that do not mind damage and fill the rest with grey, so what can be seen of damage is
looked for here: a PNG's checksums, and the ends of the others.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

from modelfiles.images.orientation import orientation_of, png_chunks, png_metadata

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


# How much of a GIF's end is searched for its end mark, how many segments may come before a picture, and how much of
# its metadata is read: these keep a hostile file from costing more than an honest one.
TAIL = 8192
MAX_SEGMENTS = 1000
MAX_METADATA = 1 << 20


def inspect(file: bytes) -> ImageHeader:
    """Read format and size from a file's header and check that the file is whole.

    Raises BadImage for anything but a complete PNG, JPEG, WebP or GIF file.
    """
    head = file[:30]
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(file)
        if head.startswith(b"\xff\xd8\xff"):
            return _jpeg(file)
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return _webp(file)
        if head.startswith((b"GIF87a", b"GIF89a")):
            return _gif(file)
    except (struct.error, IndexError):
        raise BadImage("is cut short") from None
    raise BadImage(f"is not a {ALLOWED} file")


# Chunks of a PNG that change how it is to be shown: a transparent colour, an animation.
SPECIAL = (b"tRNS", b"acTL")
TEXTS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


def _png(file: bytes) -> ImageHeader:
    if file[12:16] != b"IHDR":
        raise BadImage("is a PNG file with a broken header")
    width, height, depth, color = struct.unpack(">IIBB", file[16:26])
    plain = depth == 8 and color in (0, 2)  # grey and RGB; the others have a palette or an alpha channel
    metadata, view, kind, pixels = {"exif": b"", "xmp": b""}, memoryview(file), b"", False
    for kind, start, length in png_chunks(io.BytesIO(file)):
        end = start + length
        if end + 4 > len(file):
            raise BadImage("is cut short")
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise BadImage("is broken")
        plain, pixels = plain and kind not in SPECIAL, pixels or kind == b"IDAT"
        if kind in TEXTS and length <= MAX_METADATA:
            name, value = png_metadata(kind, file[start:end])
            metadata |= {name: value} if name else {}
    if kind != b"IEND":
        raise BadImage("is cut short")
    if not pixels:
        raise BadImage("is a PNG file without pixels")
    return ImageHeader("PNG", width, height, plain and orientation_of(**metadata) == 1)


# Start-of-frame markers (ITU-T T.81 table B.1), without DHT (C4), JPG (C8) and DAC (CC), which share the range.
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BARE = frozenset((0x00, 0xFF, *range(0xD0, 0xD9)))  # without a length: restarts and the start; 00 and FF fill
END, SCAN, APP1 = 0xD9, 0xDA, 0xE1
TELLING = SOF | {SCAN, APP1}
LENGTH = struct.Struct(">H").unpack_from
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"


def _jpeg(file: bytes) -> ImageHeader:
    position, exif, xmp, header = 2, b"", b"", None
    for _ in range(MAX_SEGMENTS):
        position = file.find(b"\xff", position)  # decoders skip what stands between segments
        if position < 0:
            break
        marker = file[position + 1]
        if marker in BARE:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == END:
            break
        start = position + 4
        position += 2 + LENGTH(file, position + 2)[0]
        if marker not in TELLING:
            continue
        if marker in SOF:
            depth, height, width, components = struct.unpack_from(">BHHB", file, start)
            header = ImageHeader("JPEG", width, height, depth == 8 and components in (1, 3))
        elif marker == APP1 and len(exif) < MAX_METADATA:
            # A long Exif block goes on in the next segments, which repeat the prefix.
            segment = file[start:position]
            if segment.startswith(b"Exif\0\0"):
                exif += segment[6:]
            elif segment.startswith(XMP_PREFIX):
                xmp = segment
        elif marker == SCAN:
            if header is None:
                break
            # Only here: a preview in the metadata has an end mark too. Sought from the end, where it should be.
            if file.rfind(bytes((0xFF, END)), position) < 0:
                raise BadImage("is cut short")
            upright = orientation_of(exif, xmp) == 1
            return ImageHeader("JPEG", header.width, header.height, header.plain and upright)
    raise BadImage("is a JPEG file with a broken header")


def _webp(file: bytes) -> ImageHeader:
    # https://developers.google.com/speed/webp/docs/riff_container
    head = file[:30]
    kind, size = head[12:16], struct.unpack("<I", head[4:8])[0] + 8
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", head[26:30]))
        plain = True
    elif kind == b"VP8L" and head[20] == 0x2F:
        bits = struct.unpack("<I", head[21:25])[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        plain = not bits >> 28 & 1  # may have transparent pixels
    elif kind == b"VP8X" and len(head) == 30:
        width, height = (int.from_bytes(head[start : start + 3], "little") + 1 for start in (24, 27))
        plain = not head[20] & 0b0001_0010  # alpha, animation
    else:
        raise BadImage("is a WebP file with a broken header")
    if len(file) < size:
        raise BadImage("is cut short")
    metadata, position = {b"EXIF": b"", b"XMP ": b""}, 12
    for _ in range(MAX_SEGMENTS):
        if position + 8 > size:
            break
        kind, length = struct.unpack_from("<4sI", file, position)
        if position + 8 + length > size:
            raise BadImage("is cut short")
        if kind in metadata and length <= MAX_METADATA:
            metadata[kind] = file[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    upright = orientation_of(metadata[b"EXIF"], metadata[b"XMP "]) == 1
    return ImageHeader("WebP", width, height, plain and upright)


def _gif(file: bytes) -> ImageHeader:
    # https://www.w3.org/Graphics/GIF/spec-gif89a.txt: signature, then the logical screen's width and height.
    width, height = struct.unpack("<HH", file[6:10])
    if b"\x3b" not in file[-TAIL:]:
        raise BadImage("is cut short")
    return ImageHeader("GIF", width, height, plain=False)
