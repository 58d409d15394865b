"""The recipe's reference page and JSON schema are those of its fields."""

from __future__ import annotations

from finetune.recipe.page import DOCS, SCHEMA, page, schema
from finetune.recipe.schema import Recipe

REMEDY = "run `python -m finetune.recipe.page`"


def test_the_page_and_the_schema_are_current() -> None:
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == page(), REMEDY
    assert (DOCS / SCHEMA).read_text(encoding="utf-8") == schema(), REMEDY


def test_every_key_is_on_the_page_with_its_values_and_default() -> None:
    text = page()
    for name, field in Recipe.model_fields.items():
        assert field.description, name
        assert text.count(f"\n| `{name}` |") == 1, name
    assert "| `cutoff_len` | integer ≥ 1 | `2048` |" in text
    assert "| `cutoff_policy` | `drop`, `error`, `shrink` | `drop` |" in text
    assert "| `model_name_or_path` | text | required |" in text
    assert "| `lora_dropout` | number ≥ 0 < 1 | `0` |" in text
