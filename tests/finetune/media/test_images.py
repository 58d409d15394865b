from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.errors import FinetuneError
from finetune.families.qwen_vl import load_processor
from finetune.media.bank import ImageBank
from finetune.media.image_files import decode, image_size
from finetune.media.pixel_limits import PixelLimits, pixel_limits
from finetune.recipe.load import make_recipe
from modelfiles.folder.model_folder import ModelFolder
from tests.support.gateway.image_corpus import ihdr, png, rows
from tests.support.paths import SHAPES_VL

LIMITS = PixelLimits(16, 2, 4096, 65536)


@pytest.fixture(scope="module")
def processor() -> object:
    return load_processor(ModelFolder.open(SHAPES_VL), LIMITS)


@given(width=st.integers(1, 1500), height=st.integers(1, 1500))
@settings(max_examples=150, deadline=None)
def test_image_tokens_are_the_processors(processor: object, width: int, height: int) -> None:
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ValueError, match="aspect ratio"):
            LIMITS.grid(width, height)
        return
    theirs = processor.image_processor(images=[Image.new("RGB", (width, height))], return_tensors="pt")  # type: ignore[attr-defined]
    assert [list(LIMITS.grid(width, height))] == theirs["image_grid_thw"].tolist()
    assert LIMITS.grid(width, height)[1] * LIMITS.grid(width, height)[2] == len(theirs["pixel_values"])


@given(width=st.integers(1, 6000), height=st.integers(1, 6000), factor=st.sampled_from([14, 16]))
def test_image_tokens_of_large_images_are_the_processors(width: int, height: int, factor: int) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    limits = PixelLimits(factor, 2, 3136, 1003520)
    if max(width, height) <= 200 * min(width, height):
        rows, columns = smart_resize(height, width, factor * 2, 3136, 1003520)
        assert limits.grid(width, height) == (1, rows // factor, columns // factor)


def test_the_recipe_narrows_the_models_limits() -> None:
    folder = ModelFolder.open(SHAPES_VL)
    narrow = pixel_limits(folder, make_recipe({"model_name_or_path": "m", "image_max_pixels": 10000}))
    assert (narrow.min_pixels, narrow.max_pixels) == (folder.image_pixel_limits[0], 10000)
    wide = pixel_limits(folder, make_recipe({"model_name_or_path": "m", "image_max_pixels": 10**9}))
    assert (wide.min_pixels, wide.max_pixels) == folder.image_pixel_limits
    with pytest.raises(FinetuneError, match="leave no size"):
        pixel_limits(folder, make_recipe({"model_name_or_path": "m", "image_max_pixels": 10}))


def test_a_turned_photo_is_counted_and_decoded_upright(tmp_path: Path, processor: object) -> None:
    image = Image.new("RGB", (200, 64), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (64, 200)
    bank = ImageBank(LIMITS)
    index = bank.add(tmp_path / "turned.jpg", "row 1")
    with ThreadPoolExecutor(1) as pool:
        pixels, grids = bank.pixels([index], processor.image_processor, pool)  # type: ignore[attr-defined]
    assert tuple(grids[0].tolist()) == bank.grids[index] == (1, 12, 4)
    assert len(pixels) == 48


XMP = b'<x:xmpmeta><x tiff:Orientation="6"/></x:xmpmeta>'
EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + bytes(4)


@pytest.mark.parametrize("case", ["JPEG with XMP", "WebP with XMP", "PNG with XMP", "PNG with Exif behind its pixels"])
def test_every_way_to_say_that_a_picture_is_turned_counts(tmp_path: Path, case: str) -> None:
    path, image = tmp_path / "turned", Image.new("RGB", (200, 64), "white")
    if case.startswith("PNG"):
        metadata = (b"eXIf", EXIF) if "Exif" in case else (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
        path.write_bytes(png(ihdr(200, 64), (b"IDAT", zlib.compress(rows(image, 8))), metadata))
    else:
        image.save(path, case.split()[0], xmp=XMP)
    assert image_size(path) == decode(path).size == (64, 200)


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))])
def test_transparency_trains_as_white(tmp_path: Path, mode: str, color: tuple[int, ...]) -> None:
    Image.new(mode, (32, 32), color).save(tmp_path / "image.png")
    assert decode(tmp_path / "image.png").getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_16_bit_grey_trains_with_its_shades(tmp_path: Path, format: str) -> None:
    Image.new("I;16", (32, 32), 0x4000).save(tmp_path / f"image.{format}")
    assert decode(tmp_path / f"image.{format}").getpixel((3, 3)) == (64, 64, 64)


def test_sizes_are_read_without_decoding(tmp_path: Path) -> None:
    Image.effect_noise((100, 50), 90).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    assert image_size(tmp_path / "cut.png") == (100, 50)
    bank = ImageBank(LIMITS)
    bank.add(tmp_path / "cut.png", "row 1")
    with ThreadPoolExecutor(1) as pool, pytest.raises(FinetuneError, match=r"cut.png cannot be decoded"):
        bank.pixels([0], None, pool)


@pytest.mark.parametrize("content", [b"not an image", b"", b"\x89PNG\r\n\x1a\n"])
def test_a_broken_image_is_named_with_its_row(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(FinetuneError, match=r"data.json, row 3: the image .*broken.png: the file is not a readable"):
        ImageBank(LIMITS).add(tmp_path / "broken.png", "data.json, row 3")


def test_a_missing_image_is_named_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"data.json, row 3: the image .*gone.png: the file does not exist"):
        ImageBank(LIMITS).add(tmp_path / "gone.png", "data.json, row 3")
