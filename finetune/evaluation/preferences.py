"""Scores a model on pairs of answers: how often, and by how much, it prefers the chosen one."""

from __future__ import annotations

import json
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from finetune.data.datasets import load_rows
from finetune.encoding.boxes import PlacedRows
from finetune.encoding.encode_rows import encode_sound
from finetune.encoding.encoded_rows import EncodedRows
from finetune.errors import FinetuneError
from finetune.evaluation.statistics import Score, interval
from finetune.families.base import Reader
from finetune.families.preference import PairFeed, PreferenceLoss
from finetune.families.registry import family_of
from finetune.model.base import load_base
from finetune.model.changes import plan_changes, read_trained
from finetune.model.device import pick_device, pick_dtype
from finetune.model.folder import open_base
from finetune.model.trained import load_trained
from finetune.model.trained_by import with_training_limits
from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from modelfiles import counted

FILE = "preferences.jsonl"


@dataclass(frozen=True)
class PreferenceResult:
    """Over `n` pairs: how often the chosen answer has the higher reward, and the rewards' mean difference.

    likelier: how often the chosen answer's tokens are the likelier ones on average, which needs no reference. A tie
    counts half. pairs: the file with each pair's figures, in the dataset's order.
    """

    n: int
    accuracy: Score
    margin: Score
    likelier: Score
    pairs: str


def evaluate_preferences(recipe: Recipe, console: Console | None = None) -> PreferenceResult:
    """Compares both answers of every row of eval_dataset; writes predict_results.json. Raises FinetuneError.

    Rewards are those of the recipe's pref_loss; the reference is the base without the adapter.
    """
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("eval_dataset", "output_dir")
    output = Path(str(recipe.output_dir))
    folder = open_base(recipe)
    adapter = recipe.adapter_name_or_path
    if adapter:
        plan_changes(folder, read_trained(Path(adapter), folder))
    recipe = with_training_limits(recipe)
    data = load_rows(str(recipe.eval_dataset), recipe)
    reader = family_of(folder).read(folder, recipe)
    placed = PlacedRows(data.rows, reader.encoder, folder.model_type, recipe)
    rows = encode_sound(placed, reader.encoder, data.rows.source, prompts=False)
    too_long = np.flatnonzero(rows.lengths > recipe.cutoff_len).tolist()
    if too_long:
        raise FinetuneError(
            f"{data.rows.source(too_long[0])}: question and answers have {rows.lengths[too_long[0]]} tokens, over "
            f"cutoff_len {recipe.cutoff_len} ({counted(len(too_long), 'such row')}); raise cutoff_len or lower "
            "image_max_pixels."
        )
    device = pick_device()
    dtype, reason = pick_dtype(recipe, device)
    console.print(f"Compute dtype {reason}.", highlight=False)
    base = load_base(folder, recipe, device, dtype)
    compared = None
    if adapter:
        if recipe.needs_reference:  # before the adapter, or whole weights, change the base
            compared = _log_probs(base, reader, rows, recipe, device, dtype)
        load_trained(base, adapter)
    policy_chosen, policy_rejected, tokens = _log_probs(base, reader, rows, recipe, device, dtype)
    means = policy_chosen / tokens[0], policy_rejected / tokens[1]
    rewards = means
    if recipe.needs_reference:  # the base alone is its own reference
        chosen, rejected, _ = compared or (policy_chosen, policy_rejected, tokens)
        rewards = policy_chosen - chosen, policy_rejected - rejected
    rewards = recipe.pref_beta * rewards[0], recipe.pref_beta * rewards[1]
    output.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, output / "recipe.yaml")
    path = output / FILE
    with path.open("w", encoding="utf-8") as file:
        for n in range(len(rows)):
            record = {
                "row": data.rows.source(n),
                "chosen_reward": rewards[0][n],
                "rejected_reward": rewards[1][n],
                "chosen_mean_log_probability": means[0][n],
                "rejected_mean_log_probability": means[1][n],
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    result = PreferenceResult(
        n=len(rows),
        accuracy=interval(_preferred(*rewards)),
        margin=interval(rewards[0] - rewards[1]),
        likelier=interval(_preferred(*means)),
        pairs=str(path),
    )
    (output / "predict_results.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def _preferred(chosen: Any, rejected: Any) -> Any:
    return (chosen > rejected) + 0.5 * (chosen == rejected)


def _log_probs(
    base: Any, reader: Reader, rows: EncodedRows, recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any, Any]:
    """Summed log-probabilities of the chosen and of the rejected answers [R], and how many tokens they have [2, R]."""
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    order = np.argsort(-rows.lengths, kind="stable")  # longest first: memory runs out at once or not at all
    size, loss = recipe.per_device_eval_batch_size, PreferenceLoss(base, recipe, None)
    found, tokens = np.zeros((2, len(rows))), np.zeros((2, len(rows)))
    feed = PairFeed(base, reader, rows.take(order).media.flat.tolist(), False, 1)
    with closing(feed), autocast, torch.no_grad():
        for start in range(0, len(rows), size):
            indices = order[start : start + size].tolist()
            batch, images = feed.batch([rows[index] for index in indices])
            found[:, indices] = loss.log_probs(batch, images).cpu().numpy().reshape(2, -1)
            tokens[:, indices] = np.array(batch.answer_tokens).reshape(2, -1)
    return found[0], found[1], tokens
