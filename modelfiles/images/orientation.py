"""How a picture is to be turned before it is shown: its orientation by Exif (CIPA DC-008, section 4.6.4) or by XMP.

The bytes come from outside: nothing here raises, and a broken block has no orientation, as in viewers.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from PIL import Image

TAG = 0x0112
TAG_FORMATS = {1: "B", 3: "H", 4: "I"}  # Exif says SHORT; some programs write BYTE or LONG
MAX_ENTRIES = 1000
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
SIDEWAYS = (5, 6, 7, 8)  # width and height are exchanged
MAX_CHUNKS = 65_536  # of a PNG: 0.5 GB in the small ones that libpng writes
MAX_TEXT = 1 << 20  # bytes of metadata in a compressed chunk
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(exif: bytes, xmp: bytes = b"") -> int:
    """1 (upright) to 8, by an Exif block and an XMP packet, either of them empty if there is none.

    Exif counts where it has the tag, XMP otherwise.
    """
    value = _exif_orientation(exif)
    if value is None and (match := XMP_ORIENTATION.search(xmp)):
        value = int(match[1])
    return value if value in UPRIGHT else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The tag's value in the first directory of a TIFF block, with or without Exif's prefix."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    with suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * min(entries, MAX_ENTRIES), 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == TAG and kind in TAG_FORMATS:
                return int(struct.unpack_from(order + TAG_FORMATS[kind], tiff, entry + 8)[0])
    return None


def orientation(image: Image.Image) -> int:
    """The orientation of an opened picture, 1 to 8. Of a PNG that is not decoded yet, what stands before its pixels."""
    exif = image.info.get("exif") or b""
    if not exif and isinstance(profile := image.info.get("Raw profile type exif"), str):
        exif = _raw_profile(profile.encode("latin-1", "ignore"))
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    if isinstance(xmp, str):
        xmp = xmp.encode()
    if not exif and hasattr(image, "tag_v2"):  # TIFF: the picture's own directory
        value = image.tag_v2.get(TAG)
        return value if value in UPRIGHT else 1
    return orientation_of(exif, xmp)


def png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """(type, position of its data, length) of a PNG's chunks up to IEND, by their heads alone.

    Ends early where the file does, or after MAX_CHUNKS. The caller may move in the file.
    https://www.w3.org/TR/png-3/#5DataRep: the signature, then chunks of length, type, data and checksum.
    """
    position = 8
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, position + 8, length
        if kind == b"IEND":
            return
        position += 12 + length


def png_orientation(file: IO[bytes]) -> int:
    """The orientation of a PNG file, 1 to 8, from its metadata before and after the pixels; decodes nothing."""
    metadata = {"exif": b"", "xmp": b""}
    for kind, position, length in png_chunks(file):
        if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") and length <= MAX_TEXT:
            file.seek(position)
            name, value = png_metadata(kind, file.read(length))
            if name:
                metadata[name] = value
    return orientation_of(metadata["exif"], metadata["xmp"])


def png_metadata(kind: bytes, data: bytes) -> tuple[str, bytes]:
    """("exif" or "xmp", its bytes) in a PNG's chunk of metadata; ("", b"") for any other text.

    https://www.w3.org/TR/png-3/#11textinfo; ImageMagick writes Exif as the text "Raw profile type exif", in hex.
    """
    if kind == b"eXIf":
        return "exif", data
    key, _, rest = data.partition(b"\0")
    if key not in (b"XML:com.adobe.xmp", b"Raw profile type exif"):
        return "", b""
    compressed = kind == b"zTXt"
    if kind == b"iTXt":
        compressed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    elif compressed:
        rest = rest[1:]  # the method
    if compressed:
        try:
            rest = zlib.decompressobj().decompress(rest, MAX_TEXT)
        except zlib.error:
            return "", b""
    return ("xmp", rest) if key.startswith(b"XML") else ("exif", _raw_profile(rest))


def _raw_profile(text: bytes) -> bytes:
    """The block in ImageMagick's text: an empty line, its name, its length, and hex digits in lines."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
