"""Pictures of every mode become upright 8-bit RGB with the colours that a viewer shows."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image, ImageOps

from modelfiles.images.pixels import upright_rgb
from tests.support.gateway.image_corpus import ihdr, png

WHITE = (255, 255, 255)


def first_pixel(mode: str, color: object) -> object:
    image = upright_rgb(Image.new(mode, (3, 2), color))  # type: ignore[arg-type]
    assert (image.mode, image.size) == ("RGB", (3, 2))
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "color", "shows"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, WHITE),
        ("1", 0, (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBA", (200, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("RGBa", (0, 0, 0, 0), WHITE),
        ("LA", (9, 0), WHITE),
        ("LA", (9, 255), (9, 9, 9)),
        ("I;16", 0x4000, (64, 64, 64)),
        ("I;16B", 0xFFFF, WHITE),
        ("I", 0x8000, (128, 128, 128)),
        ("I", -5, (0, 0, 0)),
        ("F", 0.5, (127, 127, 127)),
        ("F", 100.0, (100, 100, 100)),
    ],
)
def test_a_mode_shows_as_its_colours_say(mode: str, color: object, shows: object) -> None:
    assert first_pixel(mode, color) == shows


def test_12_bits_of_a_tiff_are_scaled_as_12_bits() -> None:
    # Rows of two samples of 12 bits: 0x800 and 0xFFF.
    strip = bytes([0x80, 0x0F, 0xFF])
    entries = [(256, 4, 2), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1)]
    entries += [(278, 4, 1), (279, 4, len(strip))]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    file = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    image = upright_rgb(Image.open(io.BytesIO(file.ljust(122, b"\0") + strip)))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(128, 128, 128), WHITE]


def test_a_transparent_shade_of_16_bit_grey_shows_white() -> None:
    lines = b"\0" + struct.pack(">HHH", 0x4000, 500, 501)
    file = png(ihdr(3, 1, 16, 0), (b"tRNS", struct.pack(">H", 500)), (b"IDAT", zlib.compress(lines)))
    image = upright_rgb(Image.open(io.BytesIO(file)))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(64, 64, 64), WHITE, (1, 1, 1)]


def test_an_upright_picture_is_not_turned_by_the_next_reader() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, "JPEG", exif=exif)
    image = upright_rgb(Image.open(file))
    assert image.size == (4, 6)
    assert ImageOps.exif_transpose(image).size == (4, 6)


def test_damaged_files_raise() -> None:
    file = io.BytesIO()
    Image.effect_noise((50, 50), 90).save(file, "PNG")
    with pytest.raises((OSError, SyntaxError)):
        upright_rgb(Image.open(io.BytesIO(file.getvalue()[:1500])))
