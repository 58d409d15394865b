"""Reads a recipe from a YAML file and the command line, and writes the effective one beside a result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune.errors import FinetuneError
from finetune.recipe.explain import explain_recipe_error, recipe_warnings
from finetune.recipe.llamafactory import drop_idle_keys
from finetune.recipe.schema import Recipe
from modelfiles.folder.located_yaml import DuplicateKeyError, LocatedYamlError, read_located_yaml


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `key=value` overrides (values are YAML).

    Raises FinetuneError with one line for each problem: file, line, key, what to do.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FinetuneError(f"The recipe {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"The recipe {path} cannot be read: {error}.") from None
    values, locations = _read_yaml(text, path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise FinetuneError(f"{override!r} is not of the form key=value.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise FinetuneError(f"The value in {override!r} is not YAML.") from None
        locations[key] = f"command line, {key}"
    return make_recipe(values, locations, str(path))


def make_recipe(values: dict[str, Any], locations: dict[str, str] | None = None, origin: str = "recipe") -> Recipe:
    """Checks a recipe given as a dict. Raises FinetuneError, one line for each problem.

    locations: for each key, how messages name it ("recipe.yaml, line 3, lora_rank"); origin: for a key without one.
    """
    try:
        recipe = Recipe.model_validate(drop_idle_keys(values))
        recipe._warnings = recipe_warnings(values)
        return recipe
    except ValidationError as error:
        lines = []
        for key, sentence in _explained(error):
            location = (locations or {}).get(key, f"{origin}, {key}" if key else origin)
            lines.append(f"{location}: {sentence}")
        raise FinetuneError("\n".join(dict.fromkeys(lines))) from None


def recipe_problems(values: dict[str, Any]) -> dict[str, str]:
    """What is wrong with a recipe given as a dict: a sentence by key, "" for what concerns several keys."""
    try:
        Recipe.model_validate(drop_idle_keys(values))
    except ValidationError as error:
        return dict(reversed(_explained(error)))  # a key's first sentence stays
    return {}


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the effective recipe, defaults included, as YAML that can be run again."""
    path.write_text(yaml.safe_dump(recipe.model_dump(), sort_keys=False), encoding="utf-8")


def _explained(error: ValidationError) -> list[tuple[str, str]]:
    """(key, sentence) of each problem."""
    keys = [(str(problem["loc"][0]) if problem["loc"] else "", problem) for problem in error.errors()]
    return [(key, explain_recipe_error(key, problem)) for key, problem in keys]


def _read_yaml(text: str, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The mapping, and for each key its location ("recipe.yaml, line 3, lora_rank")."""
    try:
        document = read_located_yaml(text)
    except DuplicateKeyError as error:
        line = error.location[0] if error.location else 1
        message = "this key is already set above; remove one of them."
        raise FinetuneError(f"{path}, line {line}, {error.name}: {message}") from None
    except LocatedYamlError as error:
        place = f", line {error.location[0]}" if error.location else ""
        raise FinetuneError(f"{path}{place}: {error}") from None
    if not isinstance(document.value, dict):
        raise FinetuneError(f"{path}: a recipe is a list of `key: value` lines.")
    locations = {
        str(key): f"{path}, line {document.keys[(str(key),)][0]}, {key}"
        for key in document.value
        if (str(key),) in document.keys
    }
    return {str(key): value for key, value in document.value.items()}, locations
