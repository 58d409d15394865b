"""Writes a folder's configs the way that Ollama's converter reads them, without taking anything from transformers.

transformers 5 moved rope_theta and rope_scaling into rope_parameters, nests Qwen2.5-VL's text settings, and no longer
writes preprocessor_config.json; Ollama (convert/convert_qwen3vl.go, convert_qwen25vl.go) reads the older places and
either fails or imports zeros. Every key is added beside the new ones, so that transformers 4.57 and 5 load the result.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from modelfiles.folder.files import positive_int
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.ollama.architectures import Architecture


@dataclass(frozen=True)
class Change:
    """One key that was added to a JSON file (a dotted path; "*" for the whole file), and why."""

    file: str
    key: str
    reason: str


class RepairError(ValueError):
    """The folder lacks what Ollama needs and nothing in it says what it should be."""


def repaired_configs(folder: ModelFolder, architecture: Architecture) -> tuple[dict[str, dict[str, Any]], list[Change]]:
    """The JSON files that must differ from the folder's, by name, and each change. Raises RepairError."""
    changes: list[Change] = []
    config = copy.deepcopy(folder.config)
    if not architecture.reads_rope_parameters:
        _normalise_rope(config, folder, architecture, changes)
    _count_experts(config, changes)
    if architecture.text_fields == "root":
        _hoist_text_config(config, changes)
    files = {"config.json": config} if changes else {}
    if (
        "preprocessor_config.json" in architecture.needed_files
        and not (folder.path / "preprocessor_config.json").exists()
    ):
        files["preprocessor_config.json"] = _preprocessor(folder)
        reason = "Ollama opens this file; transformers 5 writes its content into processor_config.json"
        changes.append(Change("preprocessor_config.json", "*", reason))
    return files, changes


def _normalise_rope(
    config: dict[str, Any], folder: ModelFolder, architecture: Architecture, changes: list[Change]
) -> None:
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    prefix = "text_config." if text is not config else ""
    rope = text.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    if not text.get("rope_theta") and isinstance(rope.get("rope_theta"), (int, float)):
        text["rope_theta"] = rope["rope_theta"]
        changes.append(Change("config.json", f"{prefix}rope_theta", "Ollama does not read rope_parameters.rope_theta"))
    if not architecture.mrope_section:
        return
    scaling = text.get("rope_scaling")
    scaling = dict(scaling) if isinstance(scaling, dict) else {}
    if not scaling.get("mrope_section"):
        section = rope.get("mrope_section") or _default_section(folder, architecture)
        scaling = {"rope_type": "default"} | {key: rope[key] for key in ("mrope_interleaved",) if key in rope} | scaling
        scaling["mrope_section"] = section
        text["rope_scaling"] = scaling
        reason = "Ollama does not read rope_parameters.mrope_section, and without it the import fails"
        changes.append(Change("config.json", f"{prefix}rope_scaling", reason))
    if architecture.text_fields == "root" and scaling.get("type") != "mrope":
        scaling["type"] = "mrope"
        text["rope_scaling"] = scaling
        changes.append(Change("config.json", f"{prefix}rope_scaling.type", "Ollama expects mrope here for this family"))


def _default_section(folder: ModelFolder, architecture: Architecture) -> list[int]:
    """The section that transformers falls back on, if it fits: it must add up to half a head."""
    text = folder.text_config
    heads = positive_int(text.get("num_attention_heads"))
    head_dim = positive_int(text.get("head_dim")) or (positive_int(text.get("hidden_size")) // heads if heads else 0)
    if sum(architecture.mrope_section) * 2 != head_dim:
        raise RepairError(
            f"config.json of {folder.path} has no mrope_section and the family's usual one does not fit a head of "
            f"{head_dim}; add text_config.rope_scaling.mrope_section."
        )
    return list(architecture.mrope_section)


def _count_experts(config: dict[str, Any], changes: list[Change]) -> None:
    text = config.get("text_config")
    if isinstance(text, dict) and "num_local_experts" in text and "num_experts" not in text:
        text["num_experts"] = text["num_local_experts"]
        reason = "Ollama reads num_experts; transformers 5 writes num_local_experts"
        changes.append(Change("config.json", "text_config.num_experts", reason))


def _hoist_text_config(config: dict[str, Any], changes: list[Change]) -> None:
    text, vision = config.get("text_config"), config.get("vision_config")
    if isinstance(text, dict):
        reason = "Ollama reads this family's text settings at the root; nested ones become zeros"
        for key, value in text.items():
            if key not in config and key not in ("model_type", "architectures"):
                config[key] = value
                changes.append(Change("config.json", key, reason))
    if isinstance(vision, dict) and "in_channels" in vision and "in_chans" not in vision:
        vision["in_chans"] = vision["in_channels"]
        changes.append(Change("config.json", "vision_config.in_chans", "Ollama's name for in_channels"))


def _preprocessor(folder: ModelFolder) -> dict[str, Any]:
    settings = dict(folder.preprocessor)
    if not settings:
        raise RepairError(
            f"{folder.path} has no preprocessor_config.json and no processor_config.json; copy one from the base model."
        )
    settings.setdefault("image_processor_type", "Qwen2VLImageProcessor")
    return settings
