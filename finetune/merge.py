"""Merging an adapter into its base by file surgery.

The base's files are copied as they are; in the copies of its safetensors the bytes of the adapted weights alone are
replaced, in place, by base + delta computed in float32 and rounded once. So names, dtypes, shapes, shards and every
other file are the base's, which is what makes the result load wherever the base loads. One weight is in memory at a
time, and no GPU is needed.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from finetune.errors import FinetuneError
from finetune.images import pixel_limits
from finetune.model import open_base
from finetune.recipe import Recipe, load_recipe
from finetune.shards import INDEX, Place, copy_weights
from modelfiles.folder import ModelFolder
from modelfiles.provenance import PROVENANCE, written
from modelfiles.safetensors_header import HeaderError, TensorInfo, read_header

PREFIX = "base_model.model."
KINDS = ("lora_A", "lora_B", "lora_magnitude_vector")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"}


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

    def change(self, weight: Any) -> Any:
        """What is added to the float32 `weight` [out, in]."""
        change = self.scale * (read_tensor(self.b).float() @ read_tensor(self.a).float())
        if self.magnitude is None:
            return change
        summed = weight + change
        return summed * (read_tensor(self.magnitude).float() / summed.norm(dim=1))[:, None] - weight


def merge(recipe: Recipe, console: Console | None = None) -> Path:
    """Writes the merged model to export_dir and returns it. Raises FinetuneError; then export_dir is as it was."""
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("adapter_name_or_path", "export_dir")
    folder = open_base(recipe)
    adapter, target = Path(str(recipe.adapter_name_or_path)), Path(str(recipe.export_dir))
    config, tensors = read_adapter(adapter)
    deltas = plan(folder, config, tensors)
    _refuse_foreign(target, folder, adapter)
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        for file in _files(folder):
            shutil.copyfile(file, partial / file.name)
        limits = _narrow_limits(folder, partial, adapter)
        places = copy_weights(folder, partial, recipe.export_size * 1e9 if recipe.export_size else None)
        delta_norm, weight_norm = _patch(folder, places, deltas)
        if delta_norm == 0:
            raise FinetuneError(f"The adapter {adapter} changes nothing: every delta is zero. Was it trained?")
        provenance = _provenance(folder, adapter, deltas, delta_norm, weight_norm)
        (partial / PROVENANCE).write_bytes(written(provenance))
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        raise FinetuneError(f"export_dir: {target} could not be written: {error}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    console.print(
        f"{len(deltas)} weights changed, ||dW|| = {delta_norm:.4g} ({100 * delta_norm / weight_norm:.2f} % of theirs).",
        highlight=False,
    )
    if limits:
        console.print(f"Images are limited to {limits} pixels, as they were in training.", highlight=False)
    return target


def read_adapter(adapter: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """A PEFT adapter's configuration and tensors' headers. Raises FinetuneError."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = read_header(adapter / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise FinetuneError(f"adapter_name_or_path: {error.filename} does not exist.") from None
    except (OSError, ValueError, HeaderError) as error:
        raise FinetuneError(f"adapter_name_or_path: {adapter} cannot be read: {error}.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise FinetuneError(f"adapter_name_or_path: {adapter} is no LoRA adapter.")
    for key in ("modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if config.get(key):
            raise FinetuneError(f"The adapter {adapter} uses {key}, which cannot be merged yet.")
    if config.get("bias", "none") != "none":
        raise FinetuneError(f"The adapter {adapter} trained biases, which cannot be merged yet.")
    return config, tensors


def plan(folder: ModelFolder, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> list[Delta]:
    """Which base weight each pair of adapter tensors changes. Raises FinetuneError unless every tensor is used."""
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise FinetuneError("adapter_config.json has no usable r and lora_alpha.") from None
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        if not name.startswith(PREFIX) or kind not in KINDS or info.dtype not in DTYPES:
            raise FinetuneError(f"The adapter's tensor {name} ({info.dtype}) is not a LoRA matrix that can be merged.")
        pairs.setdefault(module.removeprefix(PREFIX), {})[kind] = info
    if not pairs:
        raise FinetuneError("The adapter has no tensors.")
    deltas = []
    for module, pair in pairs.items():
        if pair.keys() != (set(KINDS) if config.get("use_dora") else set(KINDS[:2])):
            raise FinetuneError(f"The adapter has {', '.join(pair)} for {module} but not its counterpart.")
        name = weight_name(folder, module)
        info, a, b = folder.tensors[name], pair["lora_A"], pair["lora_B"]
        if info.dtype not in DTYPES:
            raise FinetuneError(f"The base's {name} is {info.dtype}; merge into the 16-bit base, not a quantised one.")
        fits = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] and (b.shape[0], a.shape[1]) == info.shape
        if not fits:
            raise FinetuneError(
                f"The adapter's {module}, {list(b.shape)} x {list(a.shape)}, does not fit the base's "
                f"{list(info.shape)}."
            )
        magnitude = pair.get("lora_magnitude_vector")
        if magnitude is not None and magnitude.shape != info.shape[:1]:
            raise FinetuneError(f"The adapter's magnitudes of {module} {list(magnitude.shape)} do not fit the base's.")
        deltas.append(Delta(name, a, b, scale, magnitude))
    return deltas


def weight_name(folder: ModelFolder, module: str) -> str:
    """The name in the base's files of a module as transformers names it in memory. Raises FinetuneError.

    Checkpoints keep the names of their time: Qwen2-VL's and Qwen2.5-VL's have `model.layers` and `visual` where
    transformers 4.52 and later say `model.language_model.layers` and `model.visual`.
    """
    candidates = [module]
    for new, old in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if module.startswith(new):
            candidates.append(old + module.removeprefix(new))
        elif module.startswith(old):
            candidates.append(new + module.removeprefix(old))
    found = [f"{name}.weight" for name in dict.fromkeys(candidates) if f"{name}.weight" in folder.tensors]
    if len(found) != 1:
        raise FinetuneError(f"The adapter changes {module}, which {folder.path} does not have; is that its base?")
    return found[0]


def read_tensor(info: TensorInfo) -> Any:
    """The tensor in its own dtype."""
    with info.shard.open("rb") as file:
        file.seek(info.offsets[0])
        data = bytearray(file.read(info.size))
    return torch.frombuffer(data, dtype=DTYPES[info.dtype]).reshape(info.shape)


def _patch(folder: ModelFolder, places: dict[str, Place], deltas: list[Delta]) -> tuple[float, float]:
    """Writes the merged weights over the copies; the norms of all deltas and of the weights they change."""
    delta_square = weight_square = 0.0
    for delta in deltas:
        info = folder.tensors[delta.weight]
        weight = read_tensor(info).float()
        change = delta.change(weight)
        merged = (weight + change).to(DTYPES[info.dtype])
        if not torch.isfinite(merged).all():
            raise FinetuneError(
                f"Merging {delta.weight} gives values that {info.dtype} cannot hold; the adapter or the base is broken."
            )
        delta_square += change.square().sum().item()
        weight_square += weight.square().sum().item()
        place = places[delta.weight]
        with place.file.open("r+b") as file:
            file.seek(place.offset)
            file.write(merged.contiguous().view(torch.uint8).numpy().tobytes())
    return math.sqrt(delta_square), math.sqrt(weight_square)


def _files(folder: ModelFolder) -> list[Path]:
    """The base's files but its weights (in other formats they would go stale), its provenance and hidden ones."""
    return [
        file
        for file in sorted(folder.path.iterdir())
        if file.is_file()
        and file.name not in (PROVENANCE, INDEX)
        and not file.name.startswith(".")
        and file.suffix not in WEIGHT_SUFFIXES
    ]


def _narrow_limits(folder: ModelFolder, copy: Path, adapter: Path) -> str:
    """Writes the pixel limits of the training into the processor's configuration, if they were narrower.

    A server then makes the images that the adapter has learnt from. "" if nothing had to change.
    """
    recipe = adapter / "recipe.yaml"
    if not recipe.is_file():
        return ""
    limits = pixel_limits(folder, load_recipe(recipe))
    if (limits.least, limits.most) == folder.image_pixel_limits:
        return ""
    path = copy / "preprocessor_config.json"
    if not path.exists():  # transformers 5 keeps it with the other processors' configurations
        path = copy / "processor_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    images = config.get("image_processor", config)
    if "min_pixels" in images or "max_pixels" in images:
        images |= {"min_pixels": limits.least, "max_pixels": limits.most}
    if "size" in images or "min_pixels" not in images:
        images["size"] = {"shortest_edge": limits.least, "longest_edge": limits.most}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return f"{limits.least:,} to {limits.most:,}"


def _refuse_foreign(target: Path, folder: ModelFolder, adapter: Path) -> None:
    """Only a folder that an export made may be replaced."""
    if target.resolve() in (folder.path, adapter.resolve()):
        raise FinetuneError(f"export_dir: {target} is the base or the adapter itself; choose another folder.")
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / PROVENANCE).is_file())):
        raise FinetuneError(f"export_dir: {target} exists and is not an earlier export's; choose another folder.")


def _provenance(
    folder: ModelFolder, adapter: Path, deltas: list[Delta], delta_norm: float, weight_norm: float
) -> dict[str, Any]:
    """lensmith.json: where the merged folder came from and what was checked."""
    from lensmith import __version__

    def sha256(path: Path) -> str | None:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    def optional(name: str) -> dict[str, Any] | None:
        path = adapter / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    environment, trained = optional("environment.json"), optional("train_results.json")
    return {
        "lensmith": __version__,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base": {"name": folder.name, "fingerprint": folder.fingerprint()},
        "adapter": {"sha256": sha256(adapter / "adapter_model.safetensors"), "weights": len(deltas)},
        "recipe_sha256": sha256(adapter / "recipe.yaml"),
        "data_sha256": environment["data_sha256"] if environment else None,
        "training": {key: trained[key] for key in ("steps", "samples", "loss")} if trained else None,
        "delta_norm": delta_norm,
        "relative_delta_norm": delta_norm / weight_norm,
        "checks": ["every adapter tensor used", "all merged weights finite", "names, dtypes and shards as in the base"],
    }
