"""What a step of layers allocates at a real size, counted on tensors without contents.

Where a GPU's kernels keep other things for the backward pass than PyTorch's code for such tensors, they are stood in
for: flash attention keeps its inputs, its output and a number a row; RMSNorm its input and a number a row.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class Allocations(TorchDispatchMode):  # type: ignore[misc]
    """peak: the most bytes at once of tensors that were made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.total = self.peak = 0
        self.outside: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in storages((args, kwargs)):
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = 0
                self.outside.append(storage)
        made = func(*args, **(kwargs or {}))
        for storage in storages(made):
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.total += storage.nbytes()
                self.peak = max(self.peak, self.total)
                weakref.finalize(storage, self._freed, storage._cdata)
        return made

    def _freed(self, key: int) -> None:
        self.total -= self.sizes.pop(key)


def storages(values: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Flash(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        out = torch.empty_like(query.transpose(1, 2).contiguous())
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, Any, Any]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class Norm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return torch.empty_like(grad)


def adapted_model(config: dict[str, Any], dropout: float, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Qwen3-VL of this config.json in float16 with adapters of rank 8, as if in 4 bits, without contents."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from finetune.compute import adapted_linear, decoder
    from finetune.model.base import old_names_allowed

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> tuple[Any, None]:
        return Flash.apply(query, key, value), None

    def dense(base: Any, dtype: torch.dtype) -> Any:
        return torch.empty(base.weight.shape, dtype=dtype, device=META)

    monkeypatch.setattr(adapted_linear, "dense_weight", dense)
    monkeypatch.setattr(decoder, "rms_norm", lambda x, *_: Norm.apply(x))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", attend)
    made = Qwen3VLConfig.from_dict(config)
    made._attn_implementation = "sdpa"
    with META, old_names_allowed():
        base = Qwen3VLForConditionalGeneration(made).half().requires_grad_(False)
        targets = r".*language_model\.layers\.\d+\..*_proj"
        lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=targets)
        model = get_peft_model(base, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            parameter.grad = torch.zeros_like(parameter)
    return base.train()
