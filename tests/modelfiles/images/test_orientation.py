"""Orientation wherever a file may say it, against Pillow's own reading, and against bytes that lie."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modelfiles.images.orientation import orientation, orientation_of, png_orientation
from tests.support.gateway.image_corpus import chunk, ihdr, png, rows

TAG = 0x0112


def block(value: int, kind: int = 3, order: str = "<") -> bytes:
    """An Exif block with one tag; kind: 1 BYTE, 3 SHORT, 4 LONG."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    packed = struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind], value).ljust(4, b"\0")
    return b"Exif\0\0" + head + struct.pack(order + "HHHI", 1, TAG, kind, 1) + packed + bytes(4)


def xmp(value: int, element: bool = False) -> bytes:
    said = f"<tiff:Orientation>{value}</tiff:Orientation>" if element else f'<x tiff:Orientation="{value}"/>'
    return b"<x:xmpmeta>" + said.encode() + b"</x:xmpmeta>"


def picture(*before: tuple[bytes, bytes], after: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A PNG with chunks before and after its pixels."""
    image = Image.new("RGB", (6, 4), "red")
    return png(ihdr(6, 4), *before, (b"IDAT", zlib.compress(rows(image, 8))), *after)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("value", range(10))
def test_an_exif_block_says_it(value: int, kind: int, order: str) -> None:
    right = value if 2 <= value <= 8 else 1
    assert orientation_of(block(value, kind, order)) == right
    assert orientation_of(block(value, kind, order).removeprefix(b"Exif\0\0")) == right


@pytest.mark.parametrize("element", [True, False])
def test_xmp_says_it_where_exif_is_silent(element: bool) -> None:
    assert orientation_of(b"", xmp(6, element)) == 6
    assert orientation_of(b"Exif\0\0", xmp(6, element)) == 6
    assert orientation_of(block(3), xmp(6, element)) == 3
    assert orientation_of(b"", xmp(9, element)) == 1


@given(exif=st.binary(max_size=80), order=st.sampled_from([b"", b"II*\0", b"MM\0*"]))
def test_any_bytes_have_an_orientation(exif: bytes, order: bytes) -> None:
    assert 1 <= orientation_of(order + exif, exif) <= 8


HEX = b"\nexif\n      34\n" + block(6).hex().encode() + b"\n"
METADATA = {
    "eXIf": (b"eXIf", block(6).removeprefix(b"Exif\0\0")),
    "iTXt": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
    "compressed iTXt": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(6))),
    "raw profile": (b"tEXt", b"Raw profile type exif\0" + HEX),
    "compressed raw profile": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(HEX)),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("late", [True, False])
def test_a_png_says_it_before_and_after_its_pixels(name: str, late: bool) -> None:
    file = picture(after=(METADATA[name],)) if late else picture(METADATA[name])
    assert png_orientation(io.BytesIO(file)) == 6
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        assert orientation(image) == 6
        assert image.getexif()[TAG] == 6, "Pillow reads it too"


@pytest.mark.parametrize(
    "data",
    [
        b"XML:com.adobe.xmp\0\1\0\0\0" + b"no zlib",
        b"XML:com.adobe.xmp",
        b"Comment\0" + xmp(6),
        b"",
    ],
)
def test_other_and_broken_texts_say_nothing(data: bytes) -> None:
    assert png_orientation(io.BytesIO(picture((b"iTXt", data)))) == 1


def test_a_png_that_ends_in_its_chunks_is_read_as_far_as_it_goes() -> None:
    file = picture(METADATA["eXIf"])
    for end in range(8, len(file)):
        assert png_orientation(io.BytesIO(file[:end])) in (1, 6)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_opened_pictures_say_it(format: str, value: int) -> None:
    exif = Image.Exif()
    exif[TAG] = value
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, format, exif=exif)
    assert orientation(Image.open(file)) == value


def test_a_jpegs_and_a_webps_xmp_counts() -> None:
    for format in ("JPEG", "WEBP"):
        file = io.BytesIO()
        Image.new("RGB", (6, 4)).save(file, format, xmp=xmp(8))
        assert orientation(Image.open(file)) == 8


def test_a_png_of_nothing_but_chunks_comes_to_an_end() -> None:
    assert png_orientation(io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"") * 100_000)) == 1
