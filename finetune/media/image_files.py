"""Image files: their size from the header, their pixels upright and in RGB."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from finetune.data.row_media import shown
from finetune.errors import FinetuneError
from modelfiles.images.orientation import SIDEWAYS, orientation, png_orientation
from modelfiles.images.pixels import upright_rgb


def image_size(path: Path | str) -> tuple[int, int]:
    """(width, height) in pixels from the file's header, turned as its orientation says. Raises ValueError."""
    with _open(path) as image:
        width, height = image.size
        # A PNG's metadata may follow its pixels, where Pillow sees it when it decodes them.
        turn = png_orientation(image.fp) if image.format == "PNG" and image.fp else orientation(image)
        return (height, width) if turn in SIDEWAYS else (width, height)


def decode(path: Path | str) -> Image.Image:
    """The upright RGB image. Raises FinetuneError."""
    try:
        with _open(path) as image:
            return upright_rgb(image)
    except (ValueError, OSError, SyntaxError) as error:
        raise FinetuneError(f"The image {shown(path)} cannot be decoded: {error}.") from None


def thumbnail(path: Path | str, side: int) -> Image.Image:
    """The upright RGB image, no side longer than `side`; all of the file is read. Raises FinetuneError."""
    try:
        with _open(path) as image:
            image.draft("RGB", (side, side))  # a JPEG is decoded at an eighth of its size if that is enough
            small = upright_rgb(image)
            small.thumbnail((side, side))
            return small
    except (ValueError, OSError, SyntaxError) as error:
        raise FinetuneError(f"The image {shown(path)} cannot be decoded: {error}.") from None


def _open(path: Path | str) -> ImageFile.ImageFile:
    """Opens a file or a base64 data URI; only its header is read. Raises ValueError."""
    file: Path | io.BytesIO
    if isinstance(path, Path):
        file = path
    else:
        head, comma, data = path.partition(",")
        if not (head.startswith("data:") and head.endswith(";base64") and comma):
            raise ValueError("it is neither a path nor a base64 data URI")
        try:
            file = io.BytesIO(base64.b64decode(data, validate=True))
        except binascii.Error as error:
            raise ValueError(f"its base64 is broken ({error})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file)
    except FileNotFoundError:
        raise ValueError("the file does not exist") from None
    except UnidentifiedImageError:  # whose text is the path, absolute
        raise ValueError("the file is not a readable image (none of the known kinds)") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"the file is not a readable image ({error})") from None
