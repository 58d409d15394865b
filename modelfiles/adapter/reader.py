"""The one reader of a PEFT LoRA adapter: what it changes is read completely, or the adapter is refused.

PEFT adds a key to adapter_config.json for each new idea, and training tools leave other weights beside the adapter.
A reader that passes over one of them gives another model than the one that was trained, and nobody is told. So the keys
whose meaning is known are listed here (LoraConfig of peft 0.14 to 0.21); any other key must be unset.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfiles.folder.files import ModelFolderError, positive_int, read_json, regular_file
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.folder.safetensors_header import HeaderError, TensorInfo, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
DTYPES = ("BF16", "F16", "F32")
KINDS = ("lora_A", "lora_B", "lora_magnitude_vector")

# Keys that are applied here, with what this module or its callers do with them ...
APPLIED = {
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save",
    "init_lora_weights", "bias",
}  # fmt: skip
# ... and keys that say how the training was set up: what it changed is in the tensors.
NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version",
    "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core", "runtime_config",
    "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
# Starts from which the base's weights stay as they are. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take a part
# out of the base before training, so that their matrices do not belong beside the original weights.
PLAIN_STARTS = {"gaussian", "eva", "orthogonal"}
# What training frameworks leave beside an adapter that is not a part of the model.
OPTIMIZER_FILES = re.compile(r"(optimizer|scheduler|scaler|state|rng_state\w*|training_args)\.(bin|pt|pth)")
# Keys of rank_pattern and alpha_pattern are regular expressions to PEFT; names, whole or their ends, are all that is
# taken here, since an expression from outside can be made to match for hours.
PATTERN_KEY = re.compile(r"\^?(\w|-|\\?\.)+")
# The weights that may be one and the same, by their names or the ends of them.
EMBEDDINGS, OUTPUT = "embed_tokens.weight", "lm_head.weight"
BLOCK_BYTES = 1 << 24
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")


class AdapterError(ValueError):
    """The adapter cannot be read or used; one sentence for the user."""


@dataclass(frozen=True)
class LoraMatrices:
    """What an adapter adds to one weight: scale * b @ a, with a: [rank, in] and b: [out, rank].

    alpha: what `scale` is computed from with the rank; magnitude: [out], DoRA's length of each row of the sum, or None.
    """

    a: TensorInfo
    b: TensorInfo
    alpha: float
    scale: float
    magnitude: TensorInfo | None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter whose every tensor and configuration key is accounted for.

    lora: by the name of the adapted module, as transformers called it when the adapter was trained; saved: weights that
    were trained whole (`modules_to_save`), by their names.
    """

    path: Path
    config: dict[str, Any]
    lora: dict[str, LoraMatrices]
    saved: dict[str, TensorInfo]

    @property
    def rank(self) -> int:
        """The rank that most modules have: `r`."""
        return positive_int(self.config["r"])


def read_adapter_config(path: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA adapter. Raises AdapterError."""
    folder = path.expanduser().resolve()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickled = (folder / "adapter_model.bin").is_file() and name == WEIGHTS
            why = "; its adapter_model.bin may run code, save it as safetensors" if pickled else ""
            raise AdapterError(f"{path} has no {name}{why}; give the folder of a trained adapter in PEFT's format.")
    try:
        config = read_json(folder, CONFIG)
    except ModelFolderError as error:
        raise AdapterError(str(error)) from None
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is no LoRA adapter but {config.get('peft_type')!r}.")
    return config


def read_adapter(path: Path, config: dict[str, Any] | None = None) -> Adapter:
    """Reads a LoRA adapter's configuration and the headers of its tensors; no weights are loaded.

    config: if it has been read before. Raises AdapterError if anything in the folder would not be applied.
    """
    config = read_adapter_config(path) if config is None else config
    folder = path.expanduser().resolve()
    _refuse_config(path, config)
    _refuse_other_weights(path, folder)
    try:
        tensors = read_header(regular_file(folder, WEIGHTS))
    except (HeaderError, ModelFolderError) as error:
        raise AdapterError(f"{path} cannot be read: {str(error).removesuffix('.')}.") from None
    if not tensors:
        raise AdapterError(f"The adapter {path} has no tensors.")
    pairs: dict[str, dict[str, TensorInfo]] = {}
    saved: dict[str, TensorInfo] = {}
    wanted = config.get("modules_to_save") or []
    whole = [*wanted, "lm_head"] if config.get("ensure_weight_tying") else wanted
    for name, info in tensors.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        bare = name.removeprefix(PREFIX)
        if info.dtype in DTYPES and name.startswith(PREFIX) and kind in KINDS:
            pairs.setdefault(module.removeprefix(PREFIX), {})[kind] = info
        elif info.dtype in DTYPES and name.startswith(PREFIX) and any(f".{one}." in f".{bare}" for one in whole):
            saved[bare] = info
        else:
            raise AdapterError(f"The tensor {name} ({info.dtype}) of the adapter {path} is not a LoRA matrix.")
    if config.get("ensure_weight_tying"):
        saved = _without_tied_output(path, saved)
    missing = [one for one in wanted if not any(f".{one}." in f".{name}" for name in saved)]
    if missing:
        raise AdapterError(f"The adapter {path} trained {missing[0]} whole but holds no weights of it.")
    return Adapter(path, config, {name: _lora(path, config, name, pair) for name, pair in pairs.items()}, saved)


def read_plain_adapter(path: Path, base: ModelFolder) -> Adapter:
    """Reads an adapter of which every part is a pair of LoRA matrices, trained on the base's own prompts.

    Raises AdapterError.
    """
    adapter = read_adapter(path)
    refuse_other_texts(path, base)
    used = "DoRA" if adapter.config.get("use_dora") else "modules that were trained whole" if adapter.saved else ""
    if used:
        raise AdapterError(f"{path} has {used}, which is not served beside the base: merge it with `lensmith export`.")
    return adapter


def refuse_other_texts(path: Path, base: ModelFolder) -> None:
    """Raises AdapterError if the adapter brings a chat template or a tokenizer that differs from the base's.

    It was trained on prompts of its own, and merged or served it would get the base's.
    """
    own = ModelFolder(path.expanduser().resolve(), {}, [])
    try:
        template, source = own.chat_template_and_source
        if template is not None and template.strip() != (base.chat_template or "").strip():
            raise AdapterError(
                f"{path} brings a chat template ({source}) that is not the base's, so it was trained on other prompts; "
                f"copy it into {base.path} to use it, or delete it if the base's was used."
            )
        base_tokens = None
        for token, number in _tokens(own).items():
            base_tokens = _tokens(base) if base_tokens is None else base_tokens
            if base_tokens.get(token) != number:
                raise AdapterError(
                    f"{path} brings a tokenizer in which {token!r} is token {number}, in the base's it is "
                    f"{base_tokens.get(token, 'none')}; train and merge with one tokenizer: the base's."
                )
    except ModelFolderError as error:
        raise AdapterError(str(error)) from None


def _tokens(folder: ModelFolder) -> dict[str, int]:
    """Every token's id, as tokenizer.json and added_tokens.json say; {} without them."""
    tokens: dict[str, int] = {}
    if (folder.path / "tokenizer.json").exists():
        model = read_json(folder.path, "tokenizer.json").get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, dict):
            tokens |= vocabulary
        elif isinstance(vocabulary, list):  # Unigram: [piece, score] by id
            tokens |= {entry[0]: number for number, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    if (folder.path / "added_tokens.json").exists():
        tokens |= read_json(folder.path, "added_tokens.json")
    return tokens | {text: number for number, (text, _) in folder.added_tokens.items()}


def _refuse_config(path: Path, config: dict[str, Any]) -> None:
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool) and str(start).lower() not in PLAIN_STARTS:
        raise AdapterError(
            f"{path} was trained with init_lora_weights {start!r}, which changes the base's weights before training; "
            "convert it to a plain adapter (PEFT: save_pretrained with path_initial_model_for_weight_conversion)."
        )
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path} trained biases (bias {config['bias']!r}), which cannot be merged or served.")
    for key, value in config.items():
        if key not in APPLIED | NEUTRAL and value not in (None, False, "none", [], {}):
            raise AdapterError(f"{path} uses {key}, which cannot be merged or served; train without it.")
    wanted = config.get("modules_to_save") or []
    if not isinstance(wanted, list) or not all(isinstance(name, str) and name for name in wanted):
        raise AdapterError(f"{path}/{CONFIG}: modules_to_save is no list of names.")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        try:
            sound = all(PATTERN_KEY.fullmatch(name) and type(value) in (int, float) for name, value in pattern.items())
        except (TypeError, AttributeError):
            sound = False
        if not sound:
            raise AdapterError(f"{path}/{CONFIG}: {key} does not map names of modules to numbers.")


def _refuse_other_weights(path: Path, folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.name == WEIGHTS or not file.name.endswith(WEIGHT_SUFFIXES) or OPTIMIZER_FILES.fullmatch(file.name):
            continue
        if file.name == "adapter_model.bin":  # the same weights in PEFT's older format
            continue
        raise AdapterError(
            f"{path} holds {file.name} beside the adapter: weights that were trained too and would be lost; merge them "
            "into the base with the tool that trained them, or delete the file if it is not part of the model."
        )


def _without_tied_output(path: Path, saved: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The saved weights without the second copy that PEFT writes of embeddings which are the output too."""
    embeddings = [info for name, info in saved.items() if name.endswith(EMBEDDINGS)]
    if OUTPUT not in saved or not embeddings:
        return saved
    if not _same_data(saved[OUTPUT], embeddings[0]):
        raise AdapterError(
            f"{path} says that it trained embeddings and output as one (ensure_weight_tying) but holds two that differ."
        )
    return {name: info for name, info in saved.items() if name != OUTPUT}


def _same_data(first: TensorInfo, second: TensorInfo) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with first.shard.open("rb") as one, second.shard.open("rb") as other:
        one.seek(first.offsets[0])
        other.seek(second.offsets[0])
        return all(
            one.read(size) == other.read(size)
            for size in (min(BLOCK_BYTES, first.size - start) for start in range(0, first.size, BLOCK_BYTES))
        )


def _lora(path: Path, config: dict[str, Any], module: str, pair: dict[str, TensorInfo]) -> LoraMatrices:
    if pair.keys() != (set(KINDS) if config.get("use_dora") else set(KINDS[:2])):
        raise AdapterError(f"The adapter {path} has {', '.join(pair)} for {module} but not its counterpart.")
    rank = positive_int(_matching(config.get("rank_pattern"), module, config.get("r")))
    alpha = _matching(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not rank or type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise AdapterError(f"{path}/{CONFIG} has no usable r and lora_alpha.")
    a, b, magnitude = pair["lora_A"], pair["lora_B"], pair.get("lora_magnitude_vector")
    for kind, info, axis in (("lora_A", a, 0), ("lora_B", b, 1)):
        if len(info.shape) != 2 or info.shape[axis] != rank:
            expected = [rank, *info.shape[1:]] if axis == 0 else [*info.shape[:1], rank]
            raise AdapterError(f"{path}: {kind} of {module} is {info.dtype} {list(info.shape)} instead of {expected}.")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraMatrices(a, b, alpha, scale, magnitude)


def _matching(pattern: Any, module: str, default: Any) -> Any:
    """The value of the first key that matches the module's name or its end (peft/utils/other.py, get_pattern_key)."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
