"""The picture of a run's losses."""

from __future__ import annotations

import math
import os
from pathlib import Path

from finetune.reporting.runlog import read_log


def smooth(values: list[float]) -> list[float]:
    """TensorBoard's exponential moving average, heavier for longer curves (as LLaMA-Factory draws it)."""
    if not values:
        return []
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    smoothed, last = [], values[0]
    for value in values:
        last = last * weight + value * (1 - weight)
        smoothed.append(last)
    return smoothed


def plot_loss(folder: Path, title: str) -> Path | None:
    """Draws training_loss.png from trainer_log.jsonl; None if there is nothing to draw."""
    records = read_log(folder / "trainer_log.jsonl")
    trained = [(r["current_steps"], r["loss"]) for r in records if "loss" in r]
    tested = [(r["current_steps"], r["eval_loss"]) for r in records if "eval_loss" in r]
    if not trained:
        return None
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    steps, losses = [step for step, _ in trained], [loss for _, loss in trained]
    axes.plot(steps, losses, color="#1f77b4", alpha=0.3, linewidth=1, label="training loss")
    logarithmic = min(losses) > 0 and max(losses) > 20 * min(losses)
    smoothed = [math.exp(v) for v in smooth([math.log(v) for v in losses])] if logarithmic else smooth(losses)
    axes.plot(steps, smoothed, color="#1f77b4", linewidth=2, label="smoothed")
    if tested:
        axes.plot(*zip(*tested, strict=True), color="#d62728", marker="o", markersize=4, label="validation")
    if logarithmic:
        axes.set_yscale("log")
    axes.set(title=title, xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = folder / "training_loss.png"
    figure.savefig(path)
    return path
