"""How large Ollama makes the images of each architecture, whatever their size was in training.

Measured with Ollama 0.33.0-rc2; the sources are its llm/llama_server.go (qwenVLServerArgs) and llama.cpp's tools/mtmd.
"""

from __future__ import annotations

from typing import NamedTuple

from modelfiles.folder.model_folder import ModelFolder
from modelfiles.ollama.architectures import Architecture
from modelfiles.ollama.versions import LLAMA_SERVER, Version

# Ollama passes --image-min-tokens 1024 for these, as general.architecture of a GGUF calls them.
RESIZED_GGUF_ARCHITECTURES = ("qwen2vl", "qwen25vl", "qwen3vl", "qwen3vlmoe")
# Between these versions llama.cpp (b9626 to b10488) takes neighbouring images of equal size for frames of a video: two
# cost as much as one, and the second is invisible. b11549 no longer does it.
FUSES_IMAGES_SINCE: Version = (0, 30, 9)
FUSES_IMAGES_UNTIL: Version = (0, 33, 0)


class ImageTokens(NamedTuple):
    """The fewest and most tokens that an image can take, without its marks. A token is a square of merged patches."""

    min: int
    max: int


OLLAMA_QWEN_VL = ImageTokens(1024, 4096)
LLAMA_CPP_QWEN_VL = ImageTokens(8, 4096)  # llama.cpp's own, where Ollama passes no minimum


def image_unit(folder: ModelFolder) -> int:
    """The side in pixels of the square that becomes one image token."""
    return (folder.patch_size or 14) * folder.merge_size


def ollama_image_tokens(architecture: Architecture, ollama: Version) -> ImageTokens | None:
    """What this version of Ollama allows an image; None if it keeps to the model's own limits, or to a fixed size."""
    if architecture.image_tokens is not None or ollama < LLAMA_SERVER:
        return None
    return OLLAMA_QWEN_VL if architecture.resized_by_ollama else LLAMA_CPP_QWEN_VL


def ollama_pixel_limits(folder: ModelFolder, architecture: Architecture, ollama: Version) -> tuple[int, int] | None:
    """The same in pixels (width x height) of the folder's model: the fewest and the most."""
    tokens = ollama_image_tokens(architecture, ollama)
    unit = image_unit(folder)
    return (tokens.min * unit**2, tokens.max * unit**2) if tokens else None


def trained_image_tokens(folder: ModelFolder) -> ImageTokens:
    """The limits that the folder's own processor keeps, which are those of training; 0 for one it does not name."""
    min_pixels, max_pixels = folder.image_pixel_limits
    return ImageTokens(*(pixels // image_unit(folder) ** 2 for pixels in (min_pixels, max_pixels)))


def fuses_images(resized_by_ollama: bool, ollama: Version) -> bool:
    """Whether neighbouring images of equal size are taken for one in this version."""
    return resized_by_ollama and FUSES_IMAGES_SINCE <= ollama <= FUSES_IMAGES_UNTIL


def llama_server_command(folder: ModelFolder, num_ctx: int) -> list[str]:
    """The llama-server line that gives images the sizes they had in training, for a GGUF pair of the folder's model."""
    command = ["llama-server", "-m", "model.gguf", "--mmproj", "mmproj.gguf", "-c", str(num_ctx), "--jinja"]
    trained = trained_image_tokens(folder)
    for option, tokens in (("--image-min-tokens", trained.min), ("--image-max-tokens", trained.max)):
        command += [option, str(tokens)] if tokens else []
    return command
