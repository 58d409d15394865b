"""Images that gateways and engines break on, made anew each time: what each is, and what must become of it.

python tests/gateway/image_corpus.py FOLDER    # write the files, to look at them or to try them on another server
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

RED, LIME, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SIZE = (80, 40)


@dataclass(frozen=True)
class Case:
    """`says` is a part of the refusal; None: it is served, and `upright` says whether as the quarters below."""

    name: str
    media_type: str
    file: bytes
    says: str | None = None
    upright: bool = True


def quarters(size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """Red and green above blue and white."""
    image = Image.new("RGB", size, "white")
    draw, (x, y) = ImageDraw.Draw(image), (size[0] // 2, size[1] // 2)
    for (left, top), color in (((0, 0), RED), ((x, 0), LIME), ((0, y), BLUE)):
        draw.rectangle((left, top, left + x - 1, top + y - 1), color)
    return image.convert(mode)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


def ihdr(width: int, height: int, depth: int = 8, color: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)


def rows(image: Image.Image, depth: int) -> bytes:
    """A picture's lines as PNG has them, unfiltered."""
    values = image.tobytes()
    if depth == 16:
        values = b"".join(bytes([value, 0]) for value in values)
    step = len(values) // image.height
    return b"".join(b"\0" + values[at : at + step] for at in range(0, len(values), step))


def turned(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """The quarters as a camera stores them that was held this way (3: upside down, 6: on its side)."""
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return quarters().transpose(undo[orientation]), exif


def turned_by_other_metadata() -> Iterator[Case]:
    """Pictures on their side, as only some programs write it."""
    stored, exif = turned(6)
    xmp = b'<x:xmpmeta><x tiff:Orientation="6"/></x:xmpmeta>'
    pixels = (b"IDAT", zlib.compress(rows(stored, 8)))
    late = (b"eXIf", exif.tobytes()[6:])
    yield Case("PNG turned by Exif behind its pixels", "image/png", png(ihdr(*stored.size), pixels, late))
    text = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    yield Case("PNG turned by XMP", "image/png", png(ihdr(*stored.size), text, pixels))
    yield Case("JPEG turned by XMP", "image/jpeg", saved(stored, "JPEG", xmp=xmp))
    yield Case("WebP turned by XMP", "image/webp", saved(stored, "WEBP", xmp=xmp, lossless=True))
    plain = saved(stored, "JPEG", quality=95)
    segment = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    app1 = b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment
    scan = plain.index(b"\xff\xda")
    yield Case("JPEG turned by Exif behind its frame header", "image/jpeg", plain[:scan] + app1 + plain[scan:])
    far = far_orientation()
    parts = [far[at : at + 65_000] for at in range(0, len(far), 65_000)]
    long = b"".join(b"\xff\xe1" + struct.pack(">H", 8 + len(part)) + b"Exif\0\0" + part for part in parts)
    yield Case("JPEG turned by an Exif block of two segments", "image/jpeg", plain[:2] + long + plain[2:])


def far_orientation() -> bytes:
    """A TIFF block whose directory stands behind 70,000 bytes, as after a long maker's note."""
    directory = struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    return b"MM\0*" + struct.pack(">I", 70_008) + bytes(70_000) + directory


def served() -> Iterator[Case]:
    for format in ("PNG", "JPEG", "WEBP", "GIF"):
        yield Case(f"plain {format}", f"image/{format.lower()}", saved(quarters(), format))
    yield Case("JPEG named image/jpg", "image/jpg", saved(quarters(), "JPEG"))
    yield Case("media type in capitals", "IMAGE/PNG", saved(quarters(), "PNG"))
    yield Case("JPEG called PNG", "image/png", saved(quarters(), "JPEG"))
    yield Case("PNG called WebP", "image/webp", saved(quarters(), "PNG"))
    for media_type in ("image", "", "application/octet-stream", "image/png;charset=utf-8", "image/svg+xml"):
        yield Case(f"PNG called {media_type or 'nothing'}", media_type, saved(quarters(), "PNG"))
    yield Case("CMYK JPEG", "image/jpeg", saved(quarters(mode="CMYK"), "JPEG"))
    yield Case("progressive JPEG", "image/jpeg", saved(quarters(), "JPEG", progressive=True))
    yield Case("16-bit RGB PNG", "image/png", png(ihdr(*SIZE, 16), (b"IDAT", zlib.compress(rows(quarters(), 16)))))
    yield Case("palette PNG", "image/png", saved(quarters(mode="P"), "PNG"))
    yield Case("transparent palette PNG", "image/png", saved(quarters(mode="P"), "PNG", transparency=255))
    yield Case("RGBA PNG", "image/png", saved(quarters(mode="RGBA"), "PNG"))
    transparent_red = (b"tRNS", struct.pack(">HHH", 1, 2, 3))
    data = (b"IDAT", zlib.compress(rows(quarters(), 8)))
    yield Case("PNG with a transparent colour", "image/png", png(ihdr(*SIZE), transparent_red, data))
    for orientation in (3, 6):
        stored, exif = turned(orientation)
        for format in ("JPEG", "PNG", "WEBP"):
            options = {"lossless": True} if format == "WEBP" else {}
            file = saved(stored, format, exif=exif, **options)
            yield Case(f"{format} turned by Exif, {orientation}", f"image/{format.lower()}", file)
    yield from turned_by_other_metadata()
    frames = [quarters(), Image.new("RGB", SIZE, "black")]
    for format in ("GIF", "WEBP", "PNG"):
        file = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=10)
        yield Case(f"animated {format}", f"image/{format.lower()}", file)
    for format in ("PNG", "JPEG", "WEBP", "GIF"):
        yield Case(f"1x1 {format}", f"image/{format.lower()}", saved(Image.new("RGB", (1, 1)), format), upright=False)
    yield Case("JPEG with a preview behind it", "image/jpeg", saved(quarters(), "JPEG") + b"preview" * 2000)
    yield Case("JPEG that is a ZIP too", "image/jpeg", saved(quarters(), "JPEG") + b"PK\x05\x06" + bytes(18))
    yield Case("GIF that is a script too", "image/gif", saved(quarters(), "GIF", comment=b"*/=1;alert(1)/*"))
    yield Case("JPEG with PHP inside", "image/jpeg", saved(quarters(), "JPEG", comment=b"<?php system('id'); ?>"))


def refused() -> Iterator[Case]:
    def bomb(width: int, height: int) -> bytes:
        return png(ihdr(width, height), (b"IDAT", zlib.compress(bytes(1000))))

    yield Case("bomb PNG", "image/png", bomb(60_000, 60_000), "60000x60000 pixels")
    yield Case("bomb PNG of the largest size", "image/png", bomb(2**31 - 1, 2**31 - 1), "pixels")
    gif = saved(quarters(), "GIF")
    yield Case("bomb GIF", "image/gif", gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:], "65535x65535 pixels")
    webp = b"VP8X\x0a\0\0\0\x02\0\0\0\xff\xff\x00\xff\xff\x00"
    yield Case("bomb WebP", "image/webp", b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp, "65536x65536")
    yield Case("1x20000 PNG", "image/png", saved(Image.new("RGB", (1, 20_000)), "PNG"), "at most 200 times")
    yield Case("20000x1 JPEG", "image/jpeg", saved(Image.new("RGB", (20_000, 1)), "JPEG"), "at most 200 times")
    yield Case("PNG without pixels", "image/png", png(ihdr(0, 0), (b"IDAT", zlib.compress(b""))), "has no pixels")
    for format in ("PNG", "JPEG", "WEBP"):
        file = saved(Image.effect_noise((200, 200), 90).convert("RGB"), format)
        yield Case(f"half a {format}", f"image/{format.lower()}", file[: len(file) // 2], "is cut short")
    yield Case("half a GIF", "image/gif", gif[:11], "is cut short")
    preview = saved(Image.effect_noise((64, 64), 90), "JPEG")
    photo = saved(Image.effect_noise((200, 200), 90).convert("RGB"), "JPEG", exif=b"Exif\0\0" + preview)
    yield Case("half a JPEG with a whole preview", "image/jpeg", photo[: len(photo) * 2 // 3], "is cut short")
    whole = saved(Image.effect_noise((200, 200), 90).convert("RGB"), "PNG")
    damaged = whole[: len(whole) // 2] + b"\0\0\0\0" + whole[len(whole) // 2 + 4 :]
    yield Case("PNG with damage in the middle", "image/png", damaged, "is broken")
    yield Case("PNG without its end", "image/png", whole[:-12], "is cut short")
    yield Case("PNG without data", "image/png", png(ihdr(40, 40)), "is a PNG file without pixels")
    webp_file = saved(Image.effect_noise((200, 200), 90).convert("RGB"), "WEBP")
    short = webp_file[: len(webp_file) // 2 // 2 * 2]
    short = short[:4] + struct.pack("<I", len(short) - 8) + short[8:]
    yield Case("half a WebP with its size corrected", "image/webp", short, "is cut short")
    yield Case("PNG whose data is missing", "image/png", png(ihdr(40, 40, 16), (b"IDAT", b"")), "is broken")
    yield Case("PNG whose data is noise", "image/png", png(ihdr(40, 40, 16), (b"IDAT", b"\xff" * 99)), "is broken")
    lie = gif[:6] + struct.pack("<HH", 30, 30) + gif[10:]
    yield Case("GIF with a larger frame than its canvas", "image/gif", lie, "has another size than its header says")
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + bytes(60)
    heic = b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + bytes(60)
    tiff = saved(quarters(), "TIFF")
    others = {"SVG": svg, "EPS": eps, "HEIC": heic, "TIFF": tiff, "BMP": saved(quarters(), "BMP"), "PDF": b"%PDF-1.7\n"}
    for name, file in others.items():
        yield Case(name, f"image/{name.lower()}", file, "is not a PNG, JPEG, WebP or GIF file")
        yield Case(f"{name} called PNG", "image/png", file, "is not a PNG, JPEG, WebP or GIF file")
    yield Case("HTML that holds a PNG", "image/png", b"<html>" + saved(quarters(), "PNG"), "is not a PNG")
    yield Case("nothing", "image/png", b"", "is empty")
    yield Case("four bytes", "image/png", b"\x89PNG", "is not a PNG")


CASES = [*served(), *refused()]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        extension = case.media_type.split("/")[1].lower()
        (folder / f"{case.name.replace(' ', '_')}.{extension}").write_bytes(case.file)
    print(f"{len(CASES)} files in {folder}")
