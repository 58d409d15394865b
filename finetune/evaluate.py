"""Answers a dataset greedily and scores the answers.

Each answer is written to generated_predictions.jsonl as soon as it is there; a run that was stopped goes on from them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from finetune.errors import FinetuneError
from finetune.features import FrozenFeatures
from finetune.formats import Row
from finetune.generate import greedy
from finetune.images import ImageBank, pixel_limits
from finetune.model import load_base, open_base, pick_device, pick_dtype
from finetune.processor import load_processor
from finetune.recipe import Recipe, save_recipe
from finetune.records import read_records
from finetune.report import write_comparison
from finetune.rows import load_rows
from finetune.runlog import progress_bar
from finetune.scores import Score, compare, exact_match, interval, score_all
from finetune.template import ChatEncoder
from finetune.weights import load_adapter

PREDICTIONS = "generated_predictions.jsonl"
FIGURES = "exact match {task.fields[score]:.1f} %"


@dataclass(frozen=True)
class EvalResult:
    """Scores over `n` answers. exact_match: from 0 to 1, after stripping and case-folding both sides.

    scores: every metric's mean and 95 % interval (LLaMA-Factory's from 0 to 100, the others from 0 to 1); predictions:
    the file of prompts, predictions and labels in the dataset's order.
    """

    exact_match: float
    n: int
    scores: dict[str, Score]
    predictions: str
    seconds: float
    answers_per_second: float


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same labels: the difference of each metric's means, its interval and p (see scores.compare)."""

    difference: dict[str, Score]
    p: dict[str, float]


def evaluate(recipe: Recipe, console: Console | None = None) -> EvalResult:
    """Answers the last turn of every row of eval_dataset and scores it. Raises FinetuneError."""
    began = time.monotonic()
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("eval_dataset", "output_dir")
    output = Path(str(recipe.output_dir))
    folder = open_base(recipe)
    limits = pixel_limits(folder, recipe)
    data = load_rows(str(recipe.eval_dataset), recipe)
    device = pick_device()
    dtype, reason = pick_dtype(recipe, device)
    console.print(f"Compute dtype {reason}.", highlight=False)
    processor = load_processor(folder, limits)
    bank = ImageBank(limits)
    encoder = ChatEncoder(folder, processor, bank)
    prompts = encoder.encode_prompt(data.rows)
    too_long = [prompt for prompt in prompts if len(prompt) > recipe.cutoff_len]
    if too_long:
        raise FinetuneError(
            f"{too_long[0].source}: the prompt has {len(too_long[0])} tokens, over cutoff_len {recipe.cutoff_len} "
            f"({len(too_long)} such rows); raise cutoff_len or lower image_max_pixels."
        )

    identity = _identity(recipe, folder.fingerprint(), data.digest)
    store = _Predictions(output, identity, len(prompts), recipe.overwrite_output_dir)
    if store.found:
        console.print(f"Going on after {len(store.found)} answers in {store.path}.", highlight=False)
    save_recipe(recipe, output / "recipe.yaml")
    model = load_base(folder, recipe, device, dtype)
    if recipe.adapter_name_or_path:
        model = load_adapter(model, recipe.adapter_name_or_path).get_base_model()

    open_questions = [index for index in range(len(prompts)) if index not in store.found]
    by_length = sorted(open_questions, key=lambda index: -len(prompts[index]))
    size = recipe.per_device_eval_batch_size
    batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    features = FrozenFeatures(model, bank, processor, [i for index in by_length for i in prompts[index].images])
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    tokenizer, right = processor.tokenizer, sum(_matches(record) for record in store.found.values())
    answering = time.monotonic()
    with (
        progress_bar(console, "answering", "exact match {task.fields[score]:.1f} %") as progress,
        autocast,
        torch.no_grad(),
    ):
        bar = progress.add_task("answering", total=len(prompts), completed=len(store.found), score=math.nan)
        for batch in batches:
            rows = [prompts[index] for index in batch]
            answers = greedy(model, rows, features, folder.eos_token_ids, recipe.max_new_tokens, device)
            for index, answer in zip(batch, answers, strict=True):
                record = {
                    "index": index,
                    "prompt": _prompt_text(data.rows[index]),
                    "predict": tokenizer.decode(answer, skip_special_tokens=True),
                    "label": _label(data.rows[index]),
                    "images": [str(path) for path in data.rows[index].images if isinstance(path, Path)],
                }
                right += _matches(record)
                store.add(record)
            store.flush()
            progress.update(bar, completed=len(store.found), score=100 * right / len(store.found))
    ended = time.monotonic()
    features.close()
    path = store.finish()
    records = [store.found[index] for index in range(len(prompts))]
    scores = {name: interval(values) for name, values in _values(records, console).items()}
    result = EvalResult(
        exact_match=scores["exact_match"].mean,
        n=len(records),
        scores=scores,
        predictions=str(path),
        seconds=ended - began,
        answers_per_second=len(open_questions) / max(1e-9, ended - answering),
    )
    (output / "predict_results.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def compare_runs(ours: Path, theirs: Path, page: Path | None = None, console: Console | None = None) -> Comparison:
    """Compares two generated_predictions.jsonl files (or their folders); writes both side by side as `page`.

    Raises FinetuneError if the labels differ.
    """
    console = console or Console(stderr=True, soft_wrap=True)
    one, other = _read_predictions(ours), _read_predictions(theirs)
    if [record["label"] for record in one] != [record["label"] for record in other]:
        raise FinetuneError(f"{ours} and {theirs} do not answer the same questions.")
    values, their_values = _values(one, console), _values(other, console)
    compared = {name: compare(values[name], their_values[name]) for name in values if name in their_values}
    comparison = Comparison(
        {name: difference for name, (difference, _) in compared.items()}, {name: p for name, (_, p) in compared.items()}
    )
    if page is not None:
        rows = [
            [name, f"{d.mean:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}", f"{comparison.p[name]:.4f}"]
            for name, d in comparison.difference.items()
        ]
        write_comparison(page, one, other, rows)
    return comparison


def _read_predictions(path: Path) -> list[dict[str, Any]]:
    path = path / PREDICTIONS if path.is_dir() else path
    records = list(read_records(path))
    if not all(isinstance(r, dict) and isinstance(r.get("predict"), str) and "label" in r for r in records):
        raise FinetuneError(f"{path} does not hold predictions.")
    return records


def _values(records: list[dict[str, Any]], console: Console) -> dict[str, Any]:
    """Every metric of every record; ROUGE is left out, with a warning, where it needs a package that is missing."""
    texts = [record["predict"] for record in records], [record["label"] for record in records]
    try:
        return score_all(*texts)
    except FinetuneError as error:
        console.print(f"[yellow]Warning:[/] {error.message}", highlight=False)
        return score_all(*texts, with_rouge=False)


class _Predictions:
    """generated_predictions.jsonl while it grows. A first line in a sidecar says which run it belongs to."""

    def __init__(self, folder: Path, identity: str, total: int, overwrite: bool) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FinetuneError(f"output_dir: {folder} cannot be made: {error}.") from None
        self.path = folder / PREDICTIONS
        self._partial = folder / f".{PREDICTIONS}.partial"
        self.found: dict[int, dict[str, Any]] = {}
        lines = []
        if self._partial.exists() and not overwrite:
            lines = self._partial.read_text(encoding="utf-8", errors="replace").split("\n")
        if lines and lines[0] == identity:
            for line in lines[1:]:
                try:
                    record = json.loads(line)
                except ValueError:  # the line that was being written when the run was killed
                    continue
                if 0 <= record["index"] < total:
                    self.found[record["index"]] = record
        elif self.path.exists() and not overwrite:
            raise FinetuneError(
                f"output_dir: {self.path} exists; set overwrite_output_dir: true, or choose another folder."
            )
        self._file = self._partial.open("w", encoding="utf-8")
        self._file.write(identity + "\n")
        for record in self.found.values():
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def add(self, record: dict[str, Any]) -> None:
        self.found[record["index"]] = record
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> Path:
        """Puts the records into the dataset's order, under the final name."""
        self._file.close()
        ordered = self._partial.with_suffix(".ordered")
        with ordered.open("w", encoding="utf-8") as file:
            for index in sorted(self.found):
                file.write(json.dumps(self.found[index], ensure_ascii=False) + "\n")
        os.replace(ordered, self.path)
        self._partial.unlink()
        return self.path


def _identity(recipe: Recipe, base: str, data: str) -> str:
    """A sha256 of all that decides the answers."""
    digest = hashlib.sha256(f"{base} {data} {recipe.max_new_tokens} {recipe.quantization_bit}".encode())
    digest.update(f"{recipe.image_min_pixels} {recipe.image_max_pixels} {recipe.fp16} {recipe.bf16}".encode())
    if recipe.adapter_name_or_path:
        weights = Path(recipe.adapter_name_or_path) / "adapter_model.safetensors"
        digest.update(weights.read_bytes() if weights.is_file() else b"")
    return digest.hexdigest()


def _matches(record: dict[str, Any]) -> int:
    return int(exact_match(record["predict"], record["label"]))


def _label(row: Row) -> str:
    message = row.messages[-1]
    if "tool_calls" in message:
        return json.dumps([call["function"] for call in message["tool_calls"]], ensure_ascii=False)
    return "".join(part["text"] for part in message["content"])


def _prompt_text(row: Row) -> str:
    """The chat before the answer, for people to read."""
    turns = []
    for message in row.messages[:-1]:
        text = "".join("<image>" if part["type"] == "image" else part["text"] for part in message["content"])
        turns.append(text if message["role"] == "user" else f"{message['role']}: {text}")
    return "\n".join(turns)
