"""docs/recipe.md and docs/recipe.schema.json, written from the recipe's own fields.

python -m finetune.recipe.page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.recipe.llamafactory import IGNORED, refused_keys
from finetune.recipe.schema import Recipe

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = "recipe.schema.json"
HEAD = """# Recipe keys

A recipe is a YAML file of these keys, which are LLaMA-Factory's; `lensmith train recipe.yaml key=value` changes one.
Unknown keys and values are errors with a suggestion. Editors complete and check a recipe whose first line is

    # yaml-language-server: $schema=PATH/docs/recipe.schema.json

This page is written from `finetune/recipe/schema.py` by `python -m finetune.recipe.page`.

"""


def page() -> str:
    """The reference as Markdown."""
    fields = Recipe.model_json_schema()["properties"]
    required = Recipe.model_json_schema()["required"]
    rows = {
        name: f"| `{name}` | {_values(field)} | {_default(name, field, required)} | {_text(field)} |"
        for name, field in fields.items()
    }
    idle = [name for name in rows if fields[name]["description"].startswith("No effect")]
    table = "| key | values | default | what it does |\n|---|---|---|---|\n"
    return (
        HEAD
        + table
        + "\n".join(rows[name] for name in rows if name not in idle)
        + "\n\n## Accepted, without effect\n\nSo that LLaMA-Factory's files run as they are.\n\n"
        + table
        + "\n".join(rows[name] for name in idle)
        + "\n\nThese too, at any value, as they change no result: "
        + ", ".join(f"`{name}`" for name in sorted(IGNORED - Recipe.model_fields.keys()))
        + ".\n\n## LLaMA-Factory's keys that are refused\n\n"
        + "Each is accepted where it asks for nothing: at its default, `null` or `none`, and at `false` unless it is "
        + "on by default.\n\n| keys | instead |\n|---|---|\n"
        + "".join(
            f"| {', '.join(f'`{key}`' for key in keys)} | {text} |\n" for text, keys in sorted(refused_keys().items())
        )
    )


def schema() -> str:
    """The JSON schema, for editors."""
    return (
        json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}, indent=1)
        + "\n"
    )


def _values(field: dict[str, Any]) -> str:
    """The values a key may have: their names, or type and range."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    return " or ".join(map(_kind, kinds)).replace("|", "\\|")


def _kind(kind: dict[str, Any]) -> str:
    if "enum" in kind or "const" in kind:
        return ", ".join(f"`{_yaml(value)}`" for value in kind.get("enum", [kind.get("const")]))
    name = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text"}[kind["type"]]
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " ".join([name, *(f"{sign} {kind[key]:g}" for key, sign in signs.items() if key in kind)])


def _default(name: str, field: dict[str, Any], required: list[str]) -> str:
    if name in required:
        return "required"
    return "unset" if field["default"] is None else f"`{_yaml(field['default'])}`"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _text(field: dict[str, Any]) -> str:
    return str(field["description"]).replace("|", "\\|")


if __name__ == "__main__":
    (DOCS / "recipe.md").write_text(page(), encoding="utf-8")
    (DOCS / SCHEMA).write_text(schema(), encoding="utf-8")
