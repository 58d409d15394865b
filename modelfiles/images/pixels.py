"""What a picture is for training, evaluation and serving alike: its first frame, upright, in 8-bit RGB."""

from __future__ import annotations

from PIL import Image, ImageMath

from modelfiles.images.orientation import UPRIGHT, orientation

# Nothing but these has transparency of its own; others may name one colour or palette entry.
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
BITS_PER_SAMPLE = 258  # TIFF's tag


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture as a model gets it. Raises what Pillow raises for damaged files: OSError, ValueError, SyntaxError."""
    image.load()  # what follows a PNG's pixels may turn it
    return turned(rgb(image), orientation(image))


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture, stored with this orientation (1 to 8), as it is to be shown."""
    transpose = UPRIGHT.get(orientation)
    if transpose is not None:
        picture = picture.transpose(transpose)
    picture.info = {}  # or the next reader of the orientation would turn it once more
    return picture


def rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB, not turned. Transparency shows white; wider samples are scaled, not clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode in WIDE_MODES:
        return _narrow(image).convert("RGB")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """8-bit grey of a picture with wider samples: integers of 16 bits (a TIFF may say fewer), or floats.

    Floats are 0 to 1 if none is larger, else 0 to 255.
    """
    if image.mode == "F":
        largest = image.getextrema()[1]
        assert isinstance(largest, float)
        return image.point(lambda value: value * (255 if largest <= 1 else 1)).convert("L")
    bits = 16
    if hasattr(image, "tag_v2"):
        bits = min(16, image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0])
    wide = image.convert("I")
    grey = wide.point(lambda value: value * 2.0 ** (8 - bits)).convert("L")
    colour = image.info.get("transparency")
    if isinstance(colour, int):
        shown = ImageMath.lambda_eval(lambda names: (names["wide"] != colour) * 255, wide=wide)
        grey = Image.composite(grey, Image.new("L", grey.size, "white"), shown.convert("L"))
    return grey
