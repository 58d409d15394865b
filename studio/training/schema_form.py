"""The "advanced" form: a field for each key of the recipe, made from its schema, so that none is ever missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from finetune.recipe.schema import Recipe

Kind = Literal["text", "number", "choice"]
# A key from which on, in the schema's order, keys belong to a group.
GROUPS = {
    "adapter_name_or_path": "model",
    "freeze_language_model": "trained",
    "lora_rank": "lora",
    "val_size": "data",
    "video_max_pixels": "videos",
    "serve_with": "data",
    "per_device_train_batch_size": "training",
    "logging_steps": "logs",
    "eval_strategy": "validation",
}
# The page sets these itself: from the simple fields, or from what a run is.
OWN = frozenset({
    "model_name_or_path", "dataset", "eval_dataset", "dataset_dir", "media_dir", "output_dir", "overwrite_output_dir",
    "resume_from_checkpoint", "max_new_tokens", "image_sizes", "export_dir", "export_size", "ddp_timeout",
})  # fmt: skip


@dataclass(frozen=True)
class SchemaField:
    """One key. choices: the values it may have, as a recipe writes them, [] for any; of a number, words that it may be
    instead; help: what it does, in English."""

    key: str
    kind: Kind
    choices: tuple[str, ...]
    default: str
    help: str

    def help_in(self, language: str) -> str:
        return _translations(language).get(self.key, self.help)


@cache
def schema_groups() -> dict[str, tuple[SchemaField, ...]]:
    """The fields by group, in the schema's order."""
    properties = Recipe.model_json_schema()["properties"]
    groups: dict[str, list[SchemaField]] = {group: [] for group in GROUPS.values()}
    group = "model"
    for key, schema in properties.items():
        group = GROUPS.get(key, group)
        if key not in OWN and not schema["description"].startswith("No effect") and "const" not in schema:
            groups[group].append(_field(key, schema))
    return {group: tuple(fields) for group, fields in groups.items()}


def as_text(value: Any) -> str:
    """A value as a recipe's YAML and the form's fields have it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _field(key: str, schema: Mapping[str, Any]) -> SchemaField:
    kinds = schema.get("anyOf", [schema])
    choices: list[str] = []
    for kind in kinds:
        if kind.get("type") == "boolean":
            choices += ["true", "false"]
        choices += [as_text(value) for value in kind.get("enum", [kind["const"]] if "const" in kind else [])]
    number = any(kind.get("type") in ("integer", "number") and not {"const", "enum"} & kind.keys() for kind in kinds)
    if choices and not number and any(kind.get("type") == "null" for kind in kinds):
        choices.append("null")
    shape: Kind = "number" if number else "choice" if choices else "text"
    return SchemaField(key, shape, tuple(choices), as_text(schema["default"]), schema["description"])


@cache
def _translations(language: str) -> dict[str, str]:
    path = Path(__file__).parent / "help" / f"{language}.json"
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known
