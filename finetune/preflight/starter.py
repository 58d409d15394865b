"""A first recipe, and an entry of dataset_info.json, from data alone: what `lensmith init` writes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.data.datasets import read_rows
from finetune.data.formats import Row
from finetune.data.layouts import COLUMNS, OPENAI_TAGS, TAGS, Layout, detect
from finetune.data.records import read_records
from finetune.data.sources import METADATA, find_source
from finetune.errors import FinetuneError
from finetune.media.image_files import image_size
from finetune.memory.cards import Card
from finetune.preflight.without_model import assumed_limits, estimate_tokens
from finetune.recipe.load import make_recipe
from modelfiles import counted

INFO = "dataset_info.json"
PIXELS = 589_824  # LLaMA-Factory's image_max_pixels: 576 tokens of Qwen3-VL
STEP_ROWS = 16  # rows in an optimiser step
ENOUGH_ROWS = 300  # for three passes; fewer rows need more
VALIDATED_ROWS = 20  # with fewer, holding some out costs more than it tells


@dataclass(frozen=True)
class Choice:
    """One key of the recipe, and why it has its value. value: None for a key that is only mentioned."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Starter:
    """What was written: the recipe and the entry's file; rows: those that can be read; broken: how many cannot."""

    recipe: Path
    info: Path
    choices: list[Choice]
    rows: int
    broken: int


def write_starter(data: Path, model: str, recipe: Path, card: Card | None) -> Starter:
    """Reads the data and writes a recipe for it, and its entry in a dataset_info.json beside it. Raises FinetuneError.

    card: the GPU to train on, or None. Nothing that exists is changed, but for the entry that is added.
    """
    if recipe.exists():
        raise FinetuneError(f"{recipe} exists; give another name with --out, or remove it.")
    if not data.exists():
        raise FinetuneError(f"{data} does not exist; give a data file, or a folder of data files or pictures.")
    folder = data if data.is_dir() else data.parent
    probe = make_recipe({"model_name_or_path": model, "dataset_dir": str(folder), "box_format": "original"})
    found = read_rows(str(data), probe, hashlib.sha256(), [])
    rows = [row for row in found if isinstance(row, Row)]
    if not rows:
        raise next((row for row in found if isinstance(row, FinetuneError)), FinetuneError(f"{data} has no rows."))
    name = "".join(character if character.isalnum() else "_" for character in data.absolute().stem)
    choices = list(_choices(rows, name, str(folder), model, card))
    info = _add_entry(folder / INFO, name, _entry(data, folder))
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(_as_yaml(choices, recipe), encoding="utf-8")
    return Starter(recipe, info, choices, len(rows), len(found) - len(rows))


def _choices(rows: Sequence[Row], name: str, folder: str, model: str, card: Card | None) -> Iterator[Choice]:
    yield Choice("model_name_or_path", model, "the base model: a folder, or an id on the Hugging Face hub")
    yield Choice("stage", "sft", "supervised fine-tuning: answers are learnt")
    yield Choice("finetuning_type", "lora", "small adapters, merged into the base afterwards")
    yield Choice("lora_target", "all", "on every linear layer of the language model")
    yield Choice("lora_rank", 16, "their size: more learns more, and needs more data")
    why = "QLoRA: the language model in 4 bits, which fits a GPU of 16 GB"
    yield Choice(
        "quantization_bit", None if card is None else 4, why + (" (there is none here)" if card is None else "")
    )
    yield Choice("dataset", name, f"the entry in {folder}/{INFO}")
    yield Choice("dataset_dir", folder, "where that file is")
    images = _sizes(rows)
    largest = max((width * height for width, height in images.values()), default=0)
    if largest > PIXELS:
        yield Choice("image_max_pixels", PIXELS, f"the largest image has {largest:,} pixels; this is 576 tokens")
    limits = assumed_limits(make_recipe({"model_name_or_path": model, "image_max_pixels": PIXELS}))
    length = max((estimate_tokens(row, images, limits) for row in rows), default=0)
    cutoff = max(512, 256 * math.ceil(1.25 * length / 256))
    yield Choice("cutoff_len", cutoff, f"the longest row has about {length:,} tokens; longer ones are left out")
    held_out = len(rows) >= VALIDATED_ROWS
    if held_out:
        yield Choice("val_size", 0.1, "a tenth is held out to see whether it still learns; no image is on both sides")
        yield Choice("eval_strategy", "epoch", "validate after each pass")
        yield Choice("load_best_model_at_end", True, "keep the adapter of the best validation")
    yield Choice("output_dir", f"saves/{name}", "adapter, checkpoints, logs, report")
    yield Choice("per_device_train_batch_size", 2, "rows in memory at once; `lensmith check --gpu t4` says what fits")
    accumulated = STEP_ROWS // 2 if len(rows) >= ENOUGH_ROWS else STEP_ROWS // 4
    yield Choice(
        "gradient_accumulation_steps", accumulated, f"{counted(2 * accumulated, 'row')} in each optimiser step"
    )
    epochs = 3.0 if len(rows) >= ENOUGH_ROWS else 10.0
    yield Choice("num_train_epochs", epochs, f"passes over {counted(len(rows), 'row')}")
    yield Choice("learning_rate", 1e-4, "usual for adapters")
    yield Choice("lr_scheduler_type", "cosine", "the learning rate falls to zero")
    yield Choice("warmup_ratio", 0.05, "after rising over the first steps")
    trained = len(rows) * (0.9 if held_out else 1)
    steps = math.ceil(epochs * math.ceil(trained / (2 * accumulated)))  # a pass ends with a step of what is left
    yield Choice("logging_steps", max(1, steps // 100), f"of about {counted(steps, 'step')}")
    yield Choice("save_steps", max(10, steps // 5), "a run that is interrupted goes on from there")


def _sizes(rows: Sequence[Row]) -> dict[Path | str, tuple[int, int]]:
    """(width, height) of the rows' images; (1, 1) for one that cannot be read, which `lensmith check` names."""
    sizes: dict[Path | str, tuple[int, int]] = {}
    for image in (image for row in rows for image in row.images):
        try:
            sizes[image] = sizes.get(image) or image_size(image)
        except ValueError:
            sizes[image] = (1, 1)
    return sizes


def _entry(data: Path, folder: Path) -> dict[str, Any]:
    """The entry of dataset_info.json that says what was found of itself."""
    recipe = make_recipe({"model_name_or_path": "", "dataset_dir": str(folder)})
    file = find_source(str(data), recipe).files[0]
    first = next(
        (record for record in read_records(file.path, file.split) if not isinstance(record, FinetuneError)), None
    )
    layout = detect(first, file.media, str(file.path))
    path = folder if data.is_dir() and file.path.name in METADATA else data
    entry: dict[str, Any] = {"file_name": str(path.relative_to(folder)), "formatting": layout.kind}
    return entry | _differences(layout)


def _differences(layout: Layout) -> dict[str, Any]:
    """A layout's columns and tags where they are not those of its formatting."""
    columns = COLUMNS | ({"messages": "messages"} if layout.kind == "openai" else {})
    tags = OPENAI_TAGS if layout.kind == "openai" else TAGS
    found = {
        "columns": {key: name for key, name in layout.columns.items() if columns[key] != name},
        "tags": {key: name for key, name in layout.tags.items() if tags[key] != name},
    }
    return {key: names for key, names in found.items() if names}


def _add_entry(path: Path, name: str, entry: dict[str, Any]) -> Path:
    """Adds the entry to the file. Raises FinetuneError if another of that name is there."""
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise FinetuneError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(known, dict) or known.get(name, entry) != entry:
        raise FinetuneError(f"{path} has another entry {name!r}; rename the data file, or remove the entry.")
    try:
        path.write_text(json.dumps(known | {name: entry}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise FinetuneError(f"{path} cannot be written: {error}.") from None
    return path


def _as_yaml(choices: Sequence[Choice], path: Path) -> str:
    """The choices as lines of a recipe, each with its reason."""
    lines = []
    for choice in choices:
        value = yaml.safe_dump({choice.key: 4 if choice.value is None else choice.value}).strip()
        lines.append(f"{'# ' if choice.value is None else ''}{value}  # {choice.why}")
    return f"# lensmith check {path}\n# lensmith train {path}\n" + "\n".join(lines) + "\n"
