"""Checks a model folder for everything that breaks in Ollama, most of which `ollama create` calls a success.

Reads configs and tensor headers only. The rules are in modelfiles/checks/*_rules.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelfiles import counted
from modelfiles.checks.finding import Finding
from modelfiles.checks.image_rules import folder_image_findings, processor_findings
from modelfiles.folder.chat_template import ChatTemplateError
from modelfiles.folder.files import positive_int, read_json
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.ollama.architectures import Architecture, expand_tensors, find_architecture
from modelfiles.ollama.chat_facts import ChatFacts, read_chat_facts
from modelfiles.ollama.plan import ModelfilePlanError, choose_architecture, stop_tokens
from modelfiles.ollama.repair import RepairError, repaired_configs
from modelfiles.ollama.versions import NEWEST, Version

_LEFTOVER = re.compile(r"\.lora_|\.base_layer\.|\.modules_to_save\.")
_QUANTIZED = re.compile(r"\.(absmax|quant_map|quant_state|qweight|qzeros|SCB|weight_format)\b")
_READABLE = {"BF16", "F16", "F32", "F8_E4M3"}
_VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model)\.")


def check_folder(path: str | Path, route: str = "safetensors", ollama: Version = NEWEST) -> list[Finding]:
    """Every finding about the folder for a route ("safetensors", or "gguf", which forgives more) and an Ollama."""
    try:
        folder = ModelFolder.open(path)
        return list(_findings(folder, route, ollama))
    except ModelFolderError as error:
        return [Finding(error.rule, str(error))]


def _findings(folder: ModelFolder, route: str, ollama: Version) -> Iterator[Finding]:
    facts: ChatFacts | None = None
    try:
        facts = read_chat_facts(folder)
    except ChatTemplateError as error:
        yield Finding("MF217", f"{folder.path}: {error}", folder.chat_template_and_source[1])
    architecture = find_architecture(folder.architecture)
    if not folder.architecture:
        yield Finding("MF201", "config.json has no architectures.", "config.json")
    elif architecture is None:
        try:
            architecture = choose_architecture(folder, facts)
        except ModelfilePlanError as error:
            yield Finding("MF203", str(error), "config.json")
    if architecture and architecture.since is None and route == "safetensors":
        yield Finding(
            "MF202", f"Ollama does not import {folder.architecture} from safetensors; use --route gguf.", "config.json"
        )
    if architecture and architecture.since and route == "safetensors":
        yield from _check_configs(folder, architecture)
    if architecture:
        yield from folder_image_findings(folder, architecture, ollama)
        if architecture.experts_transposed:  # llama.cpp's converter transposes them as well
            yield from _check_experts(folder)
    yield from processor_findings(folder)
    yield from _check_weights(folder, architecture, route)
    yield from _check_tokens(folder, facts)


def _check_configs(folder: ModelFolder, architecture: Architecture) -> Iterator[Finding]:
    try:
        changes = repaired_configs(folder, architecture)[1]
    except RepairError as error:
        yield Finding("MF205" if "mrope_section" in str(error) else "MF204", str(error), "config.json")
        return
    for change in changes:
        if change.file == "preprocessor_config.json":
            yield Finding("MF204", f"preprocessor_config.json is missing: {change.reason}.", change.file)
    keys = [change.key for change in changes if change.file == "config.json"]
    rope = [key for key in keys if "rope" in key]
    hoisted = [key for key in keys if "." not in key]
    if rope:
        yield Finding("MF205", f"config.json lacks {', '.join(rope)}.", "config.json")
    if hoisted:
        yield Finding("MF206", f"config.json has {hoisted[0]} and more in text_config only.", "config.json")
    if "text_config.num_experts" in keys:
        yield Finding("MF219", "config.json has num_local_experts but no num_experts.", "config.json")
    if not (folder.path / "tokenizer.json").exists():
        yield Finding("MF204", "tokenizer.json is missing; copy it from the base model.", "tokenizer.json")


def _check_weights(folder: ModelFolder, architecture: Architecture | None, route: str) -> Iterator[Finding]:
    names = folder.tensors
    if route == "safetensors":
        if not any(re.fullmatch(r"(model|consolidated).*\.safetensors", shard.name) for shard in folder.shards):
            yield Finding("MF207", f"the weights are called {folder.shards[0].name}.", folder.shards[0].name)
        nested = sorted(folder.path.glob("*/model*.safetensors"))
        if nested:
            found = nested[0].relative_to(folder.path)
            yield Finding("MF218", f"{found} would be uploaded too.", str(found))
    index = folder.path / "model.safetensors.index.json"
    if index.exists():
        listed: dict[str, Any] = read_json(folder.path, index.name)["weight_map"]
        actual = {name: tensor.shard.name for name, tensor in names.items()}
        wrong = sorted(set(listed.items()) ^ set(actual.items()))
        if wrong:
            yield Finding("MF221", f"{wrong[0][0]} is not where {index.name} says.", index.name)
    leftover = [name for name in names if _LEFTOVER.search(name)]
    if leftover:
        yield Finding(
            "MF210",
            f"{counted(len(leftover), 'tensor of an adapter is', 'tensors of an adapter are')} left, such as "
            f"{leftover[0]!r}.",
        )
    quantized = [name for name in names if _QUANTIZED.search(name)]
    method = folder.config.get("quantization_config") or folder.text_config.get("quantization_config")
    packed = [name for name, tensor in names.items() if tensor.dtype in ("U8", "I8", "I32") and len(tensor.shape) > 0]
    if quantized or packed or method:
        example = (quantized or packed or ["quantization_config"])[0]
        yield Finding("MF211", f"the weights are quantized, as {example!r} shows.")
    else:
        dtypes = sorted({tensor.dtype for tensor in names.values()} - _READABLE)
        if dtypes:
            yield Finding("MF213", f"some weights have the dtype {', '.join(dtypes)}.")
    if architecture and route == "safetensors":
        yield from _check_names(folder, architecture)
    yield from _check_embedding(folder)


def _check_names(folder: ModelFolder, architecture: Architecture) -> Iterator[Finding]:
    names = folder.tensors
    for prefix, what in architecture.wrong_prefixes.items():
        if any(name.startswith(prefix) for name in names):
            yield Finding("MF212", f"tensors are called {prefix}...: {what}.")
            return
    expected = expand_tensors(architecture, _counts(folder))
    missing = [name for name in expected if name not in names]
    vision = [name for name in missing if _VISION.search(name)]
    text = [name for name in missing if not _VISION.search(name)]
    if text:
        yield Finding("MF208", f"{counted(len(text), 'tensor is', 'tensors are')} missing, such as {text[0]!r}.")
    if vision and not any(_VISION.search(name) for name in names):
        yield Finding("MF220", f"none of the {counted(len(vision), 'vision tensor')} is there.")
    elif vision:
        yield Finding(
            "MF209", f"{counted(len(vision), 'vision tensor is', 'vision tensors are')} missing, such as {vision[0]!r}."
        )


def _counts(folder: ModelFolder) -> dict[str, range | list[int]]:
    """How often each part repeats, from config.json, bounded by what the file can hold."""
    text, vision = folder.text_config, folder.vision_config
    limit = len(folder.tensors) + 1
    layers = min(positive_int(text.get("num_hidden_layers")), limit)
    blocks = positive_int(vision.get("depth")) or positive_int(vision.get("num_hidden_layers"))
    deepstack = vision.get("deepstack_visual_indexes")
    types = text.get("layer_types")
    types = types if isinstance(types, list) else []
    if not types:  # Qwen3.5's rule when the types are not spelled out
        every = positive_int(text.get("full_attention_interval")) or 4
        types = ["full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(layers)]
    return {
        "layer": range(layers),
        "block": range(min(blocks, limit)),
        "deepstack": range(min(len(deepstack), limit) if isinstance(deepstack, list) else 0),
        "full_attention": [i for i, kind in enumerate(types[:layers]) if kind == "full_attention"],
        "linear_attention": [i for i, kind in enumerate(types[:layers]) if kind == "linear_attention"],
    }


def _check_experts(folder: ModelFolder) -> Iterator[Finding]:
    text = folder.text_config
    inner, hidden = positive_int(text.get("moe_intermediate_size")), positive_int(text.get("hidden_size"))
    # A square tensor says nothing, but then the other one of the two is not square.
    saved_by_transformers_5 = {"down_proj": (hidden, inner), "gate_up_proj": (2 * inner, hidden)}
    for name, tensor in folder.tensors.items():
        rows, columns = saved_by_transformers_5.get(name.rpartition("mlp.experts.")[2], (0, 0))
        if rows != columns and tensor.shape[1:] == (rows, columns):
            yield Finding("MF214", f"{name!r} has the shape {list(tensor.shape)}.")
            return


def _check_embedding(folder: ModelFolder) -> Iterator[Finding]:
    rows = next((t.shape[0] for n, t in folder.tensors.items() if n.endswith("embed_tokens.weight") and t.shape), None)
    top = max(folder.added_tokens, default=0)
    if rows is not None and top >= rows:
        yield Finding(
            "MF215",
            f"tokenizer.json has the token {top} but the embedding has {counted(rows, 'row')}.",
            "tokenizer.json",
        )


def _check_tokens(folder: ModelFolder, facts: ChatFacts | None) -> Iterator[Finding]:
    try:
        stop_tokens(folder, facts)
    except ModelfilePlanError as error:
        yield Finding("MF216", str(error), "generation_config.json")
