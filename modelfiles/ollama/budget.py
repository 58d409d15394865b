"""How many tokens a request takes in Ollama, the context it needs, and the memory that costs."""

from __future__ import annotations

import math

from modelfiles.folder.files import positive_int
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.images.smart_resize import smart_resize
from modelfiles.ollama.architectures import Architecture
from modelfiles.ollama.image_limits import LLAMA_CPP_QWEN_VL, image_unit, ollama_pixel_limits
from modelfiles.ollama.versions import Version

IMAGE_MARKS = 2  # <|vision_start|> and <|vision_end|>
TEXT_TOKENS = 2048  # for the system prompt, the question and the answer
ROUND_TO = 1024


def image_tokens(architecture: Architecture, folder: ModelFolder, size: tuple[int, int], ollama: Version) -> int:
    """Tokens that an image of `size` (width, height in pixels) takes, its marks included.

    The limits of Qwen's rule are the model's own before Ollama 0.30, and Ollama's since.
    """
    if architecture.image_tokens is not None:
        return architecture.image_tokens + IMAGE_MARKS
    unit = image_unit(folder)
    low, high = folder.image_pixel_limits
    own = low or unit**2, high or LLAMA_CPP_QWEN_VL.max * unit**2
    width, height = smart_resize(size, unit, *(ollama_pixel_limits(folder, architecture, ollama) or own))
    return width * height // unit**2 + IMAGE_MARKS


def context_needed(tokens_per_image: int, images: int) -> int:
    """num_ctx for a request of so many images: a multiple of ROUND_TO with TEXT_TOKENS to spare."""
    return math.ceil((images * tokens_per_image + TEXT_TOKENS) / ROUND_TO) * ROUND_TO


def kv_cache_bytes(folder: ModelFolder, num_ctx: int) -> int:
    """Bytes of the key and value cache in 16 bit; 0 if config.json lacks the numbers."""
    text = folder.text_config
    layers, heads = positive_int(text.get("num_hidden_layers")), positive_int(text.get("num_attention_heads"))
    types = text.get("layer_types")
    if isinstance(types, list) and "linear_attention" in types:
        layers = types.count("full_attention")  # linear attention keeps no cache that grows
    kv_heads = positive_int(text.get("num_key_value_heads")) or heads
    head_dim = positive_int(text.get("head_dim")) or (positive_int(text.get("hidden_size")) // heads if heads else 0)
    return 2 * layers * kv_heads * head_dim * 2 * num_ctx
