"""Where a model runs and in which numbers: device, dtype and attention, each with its reason."""

from __future__ import annotations

import os

import torch

from finetune.errors import FinetuneError
from finetune.model import attention
from finetune.recipe.schema import Recipe


def pick_device() -> torch.device:
    """The GPU that is this process's, or the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


def pick_dtype(recipe: Recipe, device: torch.device) -> tuple[torch.dtype, str]:
    """The compute dtype and the reason, for the user.

    By compute capability: `torch.cuda.is_bf16_supported()` answers True on a T4, where bfloat16 is emulated.
    """
    if device.type == "cpu":
        return torch.float32, "float32: there is no GPU"
    return dtype_on(recipe, torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device))


def dtype_on(recipe: Recipe, capability: tuple[int, int], name: str) -> tuple[torch.dtype, str]:
    """The same for a card of which only this is known. Raises FinetuneError if the recipe asks for what it lacks."""
    name = f"{name}, compute capability {capability[0]}.{capability[1]}"
    if capability < (8, 0):
        if recipe.bf16:
            raise FinetuneError(f"bf16 is set but {name} has no bfloat16 units; set fp16: true or neither.")
        return torch.float16, f"float16 with loss scaling: {name}, has no bfloat16 units"
    if recipe.fp16:
        return torch.float16, f"float16 with loss scaling: the recipe says so, although {name}, has bfloat16"
    return torch.bfloat16, f"bfloat16: {name}"


def pick_attention(device: torch.device, packing: bool = False) -> str:
    """PyTorch's attention, by a detour where it has no flash kernel and where rows may be packed."""
    flash = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    return "sdpa" if flash and not packing else attention.register(flash, packing)
