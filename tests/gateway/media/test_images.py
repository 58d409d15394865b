"""The header readers against Pillow's own files, and against files that lie."""

from __future__ import annotations

import base64
import contextlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from gateway.media.checks import decode_base64
from gateway.media.headers import BadImage, ImageHeader, inspect
from tests.support.gateway.image_corpus import ihdr, png

MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["P", "L"],
}
PLAIN = {("PNG", "L"), ("PNG", "RGB"), ("JPEG", "L"), ("JPEG", "RGB"), ("WEBP", "RGB")}
NAMES = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "GIF": "GIF"}


def made(format: str, mode: str, size: tuple[int, int], **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, format, **options)
    return file.getvalue()


def sizes(header: ImageHeader) -> tuple[str, int, int]:
    return header.format, header.width, header.height


def read(data: bytes) -> ImageHeader:
    return inspect(decode_base64(base64.b64encode(data).decode()))


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format, modes in MODES.items() for mode in modes])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (641, 480)])
def test_every_kind_of_file_is_read_as_pillow_reads_it(format: str, mode: str, size: tuple[int, int]) -> None:
    data = made(format, mode, size)
    plain = (format, mode) in PLAIN
    assert read(data) == ImageHeader(NAMES[format], *size, plain)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0" + b"\xff\xc0" * 30_000}),
        ("JPEG", {"icc_profile": b"\xff\xc0\x00\x11\x08" * 40_000}),
        ("JPEG", {"comment": b"\xff\xd9" * 1000}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"lossless": True, "exif": b"x" * 100}),
        ("PNG", {"icc_profile": b"x" * 100_000}),
    ],
)
def test_long_and_tricky_metadata(format: str, options: dict) -> None:
    noise = Image.effect_noise((300, 500), 90).convert("RGB")
    file = io.BytesIO()
    noise.save(file, format, **options)
    assert sizes(read(file.getvalue())) == (NAMES[format], 300, 500)


def test_animations_have_the_size_of_their_canvas() -> None:
    frames = [Image.new("RGB", (50, 20), color) for color in ("red", "green", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, format, save_all=True, append_images=frames[1:], duration=10)
        assert sum(1 for _ in ImageSequence.Iterator(Image.open(file))) == 3
        assert sizes(read(file.getvalue())) == (NAMES[format], 50, 20)


@pytest.mark.parametrize("format", list(MODES))
def test_a_file_that_is_cut_short_is_refused(format: str) -> None:
    noise = Image.effect_noise((200, 200), 90).convert("L" if format == "GIF" else "RGB")
    file = io.BytesIO()
    noise.save(file, format)
    data = file.getvalue()
    # GIF's end mark is one byte, which data may hold too: only the missing tail is certain to show.
    for kept in (4, 11, 25, len(data) // 2, len(data) - 20):
        if format == "GIF" and kept > 11:
            continue
        with pytest.raises(BadImage):
            read(data[:kept])


def test_a_jpeg_of_a_million_segments_is_given_up_at_once() -> None:
    data = b"\xff\xd8" + b"\xff\xfe\x00\x02" * 1_000_000 + made("JPEG", "RGB", (4, 4))[2:]
    with pytest.raises(BadImage, match="broken header"):
        read(data)


def test_a_jpeg_with_a_preview_after_its_end() -> None:
    data = made("JPEG", "RGB", (40, 30)) + b"preview" * 10_000
    assert read(data) == ImageHeader("JPEG", 40, 30)


@pytest.mark.parametrize(
    "data",
    [
        b"BM" + bytes(60),
        b"II*\0" + bytes(60),
        b"MM\0*" + bytes(60),
        b"\0\0\0\x20ftypheic" + bytes(60),
        b"%!PS-Adobe-3.0 EPSF-3.0" + bytes(60),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"8BPS" + bytes(60),
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
        b"\xff\x0a" + bytes(60),
        b"RIFF\x10\0\0\0WAVEfmt " + bytes(60),
        b"RIFF\x10\0\0\0WEBPVP8 " + bytes(60),
        b"\x89PNG\r\n\x1a\n" + bytes(60),
        b"\xff\xd8\xff\xda" + bytes(60),
        b"\xff\xd8\xffxx" + bytes(60),
    ],
)
def test_other_formats_and_broken_headers_are_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        read(data)


def test_a_bomb_shows_its_size_without_being_decoded() -> None:
    bomb = png(ihdr(65_535, 65_535), (b"IDAT", b""))
    assert read(bomb).pixels == 65_535**2


HEADS = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"GIF89a",
    b"RIFF\0\0\0\0WEBPVP8X",
    b"RIFF\0\0\0\0WEBPVP8L",
]


@settings(max_examples=500)
@given(head=st.sampled_from(HEADS), rest=st.binary(max_size=400), padding=st.sampled_from([0, 20_000]))
def test_any_bytes_give_a_header_or_a_refusal(head: bytes, rest: bytes, padding: int) -> None:
    with contextlib.suppress(BadImage):
        header = read(head + rest + bytes(padding))
        assert 0 <= header.width <= 0xFFFFFFFF
        assert 0 <= header.height <= 0xFFFFFFFF


@given(data=st.binary(max_size=300))
def test_base64_is_decoded_whole_or_not_at_all(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert decode_base64(text) == data
    if text:
        with pytest.raises(BadImage, match="base64"):
            decode_base64(text[: len(text) // 4 * 4 - 3])


@given(data=st.binary(max_size=300), width=st.integers(1, 80), end=st.sampled_from(["\n", "\r\n", " ", "\t"]))
def test_base64_may_come_in_lines_and_without_its_padding(data: bytes, width: int, end: str) -> None:
    text = base64.b64encode(data).decode()
    assert decode_base64(text.rstrip("=")) == data
    assert decode_base64("".join(text[at : at + width] + end for at in range(0, len(text), width))) == data
    assert decode_base64(end + text.rstrip("=") + end) == data


@given(data=st.binary(max_size=200), spot=st.integers(0, 300), junk=st.sampled_from(list('-_é\0"')))
def test_base64_with_anything_strange_in_it_is_refused(data: bytes, spot: int, junk: str) -> None:
    text = base64.b64encode(b"GIF89a" + data).decode()
    broken = text[: spot % len(text)] + junk + text[spot % len(text) :]
    with pytest.raises(BadImage, match="base64"):
        decode_base64(broken)


@pytest.mark.parametrize("text", ["====", "QQ===", "QQ=Q", "=QQ=", "Q"])
def test_base64_with_padding_where_it_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(BadImage, match="base64"):
        decode_base64(text)
