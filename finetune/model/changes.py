"""Which of a base's weights a training changed, and into what.

`Delta` is a LoRA pair, `Replaced` a weight that was trained whole, `Dequantised` one that training only saw in 4 bits.
All compute in float32, a block of rows at a time where that is possible, so that memory stays small.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.model.supported import QWEN_VL
from finetune.model.tensors import DTYPES, read_tensor
from finetune.model.trained import ADAPTER, ADAPTER_CONFIG, TRAINED_WEIGHTS
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.folder.safetensors_header import HeaderError, TensorInfo, read_header

PREFIX = "base_model.model."
KINDS = ("lora_A", "lora_B", "lora_magnitude_vector")
RENAMED = (
    ("model.language_model.", "model."),
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
)
BLOCK_BYTES = 1 << 26  # of float32 weights at once
# What load_base puts into 4 bits.
QUANTISED = re.compile(r"(model\.((language|text)_model\.)?|language_model\.model\.)layers\.\d+\..+\.weight")


@dataclass(frozen=True)
class Replaced:
    """A weight that was trained whole: the new one is in the training's file."""

    weight: str
    tensor: TensorInfo

    def merged(self, old: Any, rows: slice) -> Any:
        """The new float32 rows."""
        return read_tensor(self.tensor, rows).float()


@dataclass(frozen=True)
class Delta:
    """One adapted weight: W + scale * b @ a, a: [rank, in] and b: [out, rank] in the adapter's file.

    magnitude: [out], DoRA's length of each row of the sum, or None.
    """

    weight: str
    a: TensorInfo
    b: TensorInfo
    scale: float
    magnitude: TensorInfo | None

    def merged(self, old: Any, rows: slice) -> Any:
        """The new float32 rows from the old ones [rows, in]."""
        summed = old + self.scale * (read_tensor(self.b, rows).float() @ read_tensor(self.a).float())
        if self.magnitude is None:
            return summed
        return summed * (read_tensor(self.magnitude, rows).float() / summed.norm(dim=1))[:, None]


@dataclass(frozen=True)
class Dequantised:
    """A weight as its NF4 copy has it, which is what an adapter on a 4-bit base was trained beside; then its delta.

    To be merged whole: double quantisation looks at all of a weight.
    """

    weight: str
    dtype: Any
    double: bool
    delta: Delta | None

    def merged(self, old: Any, rows: slice) -> Any:
        from bitsandbytes import functional

        data = old.to(self.dtype).contiguous()
        quantised, state = functional.quantize_4bit(data, quant_type="nf4", compress_statistics=self.double)
        seen = functional.dequantize_4bit(quantised, state).reshape(old.shape).float()
        return seen if self.delta is None else self.delta.merged(seen, rows)


Change = Replaced | Delta | Dequantised


def read_trained(folder: Path) -> tuple[dict[str, Any] | None, dict[str, TensorInfo]]:
    """What a training left: an adapter's configuration (None for whole weights) and its tensors' headers.

    Raises FinetuneError.
    """
    try:
        if (folder / TRAINED_WEIGHTS).is_file():
            return None, read_header(folder / TRAINED_WEIGHTS)
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        tensors = read_header(folder / ADAPTER)
    except FileNotFoundError as error:
        raise FinetuneError(f"adapter_name_or_path: {error.filename} does not exist.") from None
    except (OSError, ValueError, HeaderError) as error:
        raise FinetuneError(f"adapter_name_or_path: {folder} cannot be read: {error}.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise FinetuneError(f"adapter_name_or_path: {folder} is no LoRA adapter.")
    for key in ("rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if config.get(key):
            raise FinetuneError(f"The adapter {folder} uses {key}, which cannot be merged yet.")
    if config.get("bias", "none") != "none":
        raise FinetuneError(f"The adapter {folder} trained biases, which cannot be merged yet.")
    return config, tensors


def plan_changes(folder: ModelFolder, config: dict[str, Any] | None, tensors: dict[str, TensorInfo]) -> list[Change]:
    """Which base weight each trained tensor changes. Raises FinetuneError unless every tensor is used."""
    if not tensors:
        raise FinetuneError("The adapter has no tensors.")
    if config is None:
        return [_replaced(folder, name, info) for name, info in tensors.items()]
    scale = lora_scale(config)
    pairs: dict[str, dict[str, TensorInfo]] = {}
    changes: list[Change] = []
    for name, info in tensors.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        if name.startswith(PREFIX) and kind in KINDS and info.dtype in DTYPES:
            pairs.setdefault(module.removeprefix(PREFIX), {})[kind] = info
        elif name.startswith(PREFIX) and config.get("modules_to_save"):
            changes.append(_replaced(folder, name.removeprefix(PREFIX), info))
        else:
            raise FinetuneError(f"The adapter's tensor {name} ({info.dtype}) is not a LoRA matrix that can be merged.")
    for module, pair in pairs.items():
        if pair.keys() != (set(KINDS) if config.get("use_dora") else set(KINDS[:2])):
            raise FinetuneError(f"The adapter has {', '.join(pair)} for {module} but not its counterpart.")
        weight, base = base_tensor(folder, f"{module}.weight")
        a, b, magnitude = pair["lora_A"], pair["lora_B"], pair.get("lora_magnitude_vector")
        fits = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] and (b.shape[0], a.shape[1]) == base.shape
        if not fits:
            raise FinetuneError(
                f"The adapter's {module}, {list(b.shape)} x {list(a.shape)}, does not fit the base's "
                f"{list(base.shape)}."
            )
        if magnitude is not None and magnitude.shape != base.shape[:1]:
            raise FinetuneError(f"The adapter's magnitudes of {module} {list(magnitude.shape)} do not fit the base's.")
        changes.append(Delta(weight, a, b, scale, magnitude))
    return changes


def lora_scale(config: dict[str, Any]) -> float:
    """What b @ a is multiplied by. Raises FinetuneError."""
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise FinetuneError("adapter_config.json has no usable r and lora_alpha.") from None


def dequantised(folder: ModelFolder, changes: list[Change], double: bool) -> list[Change]:
    """The same changes on the base that training saw: all quantised weights, adapted or not, as their NF4 copies."""
    by_name = {change.weight: change for change in changes}
    seen: list[Change] = []
    for name, info in folder.tensors.items():
        if QUANTISED.fullmatch(name) and len(info.shape) == 2 and info.dtype in DTYPES:
            change = by_name.pop(name, None)
            if isinstance(change, Replaced):
                seen.append(change)
            else:
                seen.append(
                    Dequantised(name, DTYPES[info.dtype], double, change if isinstance(change, Delta) else None)
                )
    return seen + list(by_name.values())


def _replaced(folder: ModelFolder, name: str, info: TensorInfo) -> Replaced:
    weight, base = base_tensor(folder, name)
    if info.shape != base.shape or info.dtype not in DTYPES:
        raise FinetuneError(f"The trained {name}, {info.dtype} {list(info.shape)}, does not fit {list(base.shape)}.")
    return Replaced(weight, info)


def base_tensor(folder: ModelFolder, name: str) -> tuple[str, TensorInfo]:
    """A tensor of the base's files, and its name in them, by the name that transformers gives it in memory.

    Checkpoints keep the names of their time: Qwen2-VL's and Qwen2.5-VL's have `model.layers` and `visual`, LLaVA's,
    Gemma 3's and InternVL's `language_model.model.layers`, where transformers 4.52 and later say
    `model.language_model.layers` and `model.visual`. Raises FinetuneError.
    """
    candidates = [name]
    for new, old in RENAMED:
        if name.startswith(new):
            candidates.append(old + name.removeprefix(new))
        elif name.startswith(old):
            candidates.append(new + name.removeprefix(old))
    found = [candidate for candidate in dict.fromkeys(candidates) if candidate in folder.tensors]
    if len(found) != 1:
        module = name.removesuffix(".weight")
        raise FinetuneError(f"The adapter changes {module}, which {folder.path} does not have; is that its base?")
    info = folder.tensors[found[0]]
    if info.dtype not in DTYPES:
        raise FinetuneError(f"The base's {found[0]} is {info.dtype}; merge into the 16-bit base, not a quantised one.")
    return found[0], info


def refuse_unmergeable(model: Any, folder: ModelFolder) -> None:
    """Raises FinetuneError before training if an adapter of another family's model has no place in the base's files."""
    if folder.model_type in QWEN_VL:
        return
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            try:
                _, info = base_tensor(folder, f"{name.removeprefix(PREFIX)}.weight")
                fits = info.shape == (module.out_features, module.in_features)
            except FinetuneError:
                fits = False
            if not fits:
                raise FinetuneError(
                    f"{folder.path} keeps {name.removeprefix(PREFIX)} under another name or in another layout than "
                    "transformers, so an adapter could not be merged into its files; save it with transformers anew, "
                    "or leave it out of lora_target."
                )


def row_blocks(change: Change, info: TensorInfo) -> Iterator[slice]:
    """The rows of a weight in blocks small enough to be computed at once."""
    if not info.shape:
        yield slice(0, 1)
        return
    rows = info.shape[0]
    size = rows
    if not isinstance(change, Dequantised):
        size = max(1, BLOCK_BYTES // (4 * max(1, math.prod(info.shape[1:]))))
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))
