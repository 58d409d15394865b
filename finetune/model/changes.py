"""Which of a base's weights a training changed, and into what.

`Delta` is a LoRA pair, `Replaced` a weight that was trained whole, `Dequantised` one that training only saw in 4 bits.
All compute in float32, a block of rows at a time where that is possible, so that memory stays small.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.model.supported import QWEN_VL
from finetune.model.tensors import DTYPES, read_tensor
from finetune.model.trained_by import ADAPTER, TRAINED_WEIGHTS, training_recipe
from modelfiles.adapter.names import names_of_all_versions
from modelfiles.adapter.reader import PREFIX, Adapter, AdapterError, read_adapter, refuse_other_texts
from modelfiles.folder.files import ModelFolderError, regular_file
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.folder.safetensors_header import HeaderError, TensorInfo, read_header

EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|lm_head)(\.|$)")
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


def read_trained(path: Path, folder: ModelFolder) -> Adapter | dict[str, TensorInfo]:
    """What a training of the base in `folder` left in `path`: an adapter, or the headers of whole weights.

    Raises FinetuneError if it cannot be read, or if anything in it would not be applied.
    """
    if not path.is_dir():
        raise FinetuneError(f"adapter_name_or_path: {path} does not exist.")
    weights = [name for name in (ADAPTER, TRAINED_WEIGHTS) if (path / name).is_file()]
    if len(weights) == 2:
        raise FinetuneError(f"adapter_name_or_path: {path} holds {' and '.join(weights)}; keep what is to be used.")
    if not weights and (names := sorted(path.glob("checkpoint-*"), key=lambda found: (len(found.name), found.name))):
        raise FinetuneError(
            f"adapter_name_or_path: the run in {path} was interrupted and has no adapter yet; the command that trained "
            f"goes on with it, or use its last checkpoint: adapter_name_or_path: {names[-1]}."
        )
    try:
        if weights == [TRAINED_WEIGHTS]:
            return read_header(regular_file(path.resolve(), TRAINED_WEIGHTS))
        adapter = read_adapter(path)
        refuse_other_texts(path, folder)
    except (AdapterError, ModelFolderError, HeaderError) as error:
        raise FinetuneError(f"adapter_name_or_path: {str(error).removesuffix('.')}.") from None
    tied = folder.config.get("tie_word_embeddings", folder.text_config.get("tie_word_embeddings"))
    split = [name for name in adapter.saved if tied and EMBEDDINGS.search(name)]
    if split and not (adapter.config.get("ensure_weight_tying") or training_recipe(path)):
        raise FinetuneError(
            f"adapter_name_or_path: {path} trained {split[0]} apart, but the base ties its embeddings to its output: "
            "merged into the one weight it would change both; train with PEFT's ensure_weight_tying, or without it."
        )
    return adapter


def plan_changes(folder: ModelFolder, trained: Adapter | dict[str, TensorInfo]) -> list[Change]:
    """Which base weight each trained tensor changes. Raises FinetuneError unless every tensor is used."""
    if not isinstance(trained, Adapter):
        if not trained:
            raise FinetuneError(f"{TRAINED_WEIGHTS} has no tensors.")
        return [_replaced(folder, name, info) for name, info in trained.items()]
    changes: list[Change] = [_replaced(folder, name, info) for name, info in trained.saved.items()]
    for module, pair in trained.lora.items():
        weight, base = base_tensor(folder, f"{module}.weight")
        if (pair.b.shape[0], pair.a.shape[1]) != base.shape:
            raise FinetuneError(
                f"The adapter's {module}, {list(pair.b.shape)} x {list(pair.a.shape)}, does not fit the base's "
                f"{list(base.shape)}."
            )
        if pair.magnitude is not None and pair.magnitude.shape != base.shape[:1]:
            raise FinetuneError(
                f"The adapter's magnitudes of {module} {list(pair.magnitude.shape)} do not fit the base's."
            )
        changes.append(Delta(weight, pair.a, pair.b, pair.scale, pair.magnitude))
    twice = [name for name, count in Counter(change.weight for change in changes).items() if count > 1]
    if twice:
        raise FinetuneError(f"The adapter changes {twice[0]} twice, under names of two versions of transformers.")
    return changes


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

    Raises FinetuneError.
    """
    found = [candidate for candidate in names_of_all_versions(name) if candidate in folder.tensors]
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
