"""The gateway sends engines the pixels that training and evaluation saw."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from finetune.media.image_files import decode as training_pixels
from finetune.media.image_files import image_size
from gateway.embedded.generation.prompt import decode_image as embedded_pixels
from gateway.media.checks import write_data_uri
from gateway.media.headers import inspect
from gateway.media.worker import convert
from gateway.media.worker import decode as serving_pixels
from tests.support.gateway.image_corpus import CASES, SIZE, quarters, saved


def modes() -> dict[str, bytes]:
    alpha = Image.linear_gradient("L").resize(SIZE)
    transparent = quarters(mode="RGBA")
    transparent.putalpha(alpha)
    grey = Image.new("I;16", SIZE, 0x4000)
    files = {
        "RGBA PNG": saved(transparent, "PNG"),
        "LA PNG": saved(transparent.convert("LA"), "PNG"),
        "1-bit PNG": saved(quarters(mode="1"), "PNG"),
        "grey PNG": saved(quarters(mode="L"), "PNG"),
        "16-bit grey PNG": saved(grey, "PNG"),
        "transparent 16-bit grey PNG": saved(grey, "PNG", transparency=0x4000),
        "JPEG with a second picture": saved(quarters(), "MPO", save_all=True, append_images=[quarters((20, 10))]),
        "RGBA WebP": saved(transparent, "WEBP", lossless=True),
        "transparent GIF": saved(transparent, "GIF"),
    }
    files |= {case.name: case.file for case in CASES if case.says is None}
    return files


FILES = modes()


@pytest.mark.parametrize("name", FILES)
def test_training_evaluation_and_serving_see_the_same_picture(tmp_path: Path, name: str) -> None:
    file, path = FILES[name], tmp_path / "image"
    path.write_bytes(file)
    header = inspect(file)
    size = header.width, header.height
    trained = training_pixels(path)
    assert trained.mode == "RGB"
    assert trained.size == image_size(path)
    served, lossy = serving_pixels(file, size, size)
    embedded = embedded_pixels(write_data_uri("image/png", file), "messages[0]")
    for other in (served, embedded):
        assert (other.mode, other.size) == ("RGB", trained.size)
        assert ImageChops.difference(trained, other).getbbox() is None
    if not lossy:
        sent = Image.open(io.BytesIO(convert(file, size, size)[1]))
        assert ImageChops.difference(trained, sent).getbbox() is None
