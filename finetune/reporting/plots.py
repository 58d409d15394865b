"""The pictures of a run's losses and rewards."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

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
    unit = "loss (nats a token)" if "rewards/margins" not in records[0] else "loss (nats a pair)"
    axes.set(title=title, xlabel="step", ylabel=unit)
    return _write(figure, folder / "training_loss.png")


def plot_rewards(folder: Path, title: str) -> Path | None:
    """Draws training_rewards.png, of a run that learns from preferences; None if there is nothing to draw."""
    records = [r for r in read_log(folder / "trainer_log.jsonl") if "rewards/margins" in r]
    tested = [r for r in read_log(folder / "trainer_log.jsonl") if "eval_rewards/margins" in r]
    if not records:
        return None
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=150, layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    steps, validated = [r["current_steps"] for r in records], [r["current_steps"] for r in tested]
    for axes, name, colour in (
        (above, "chosen", "#2ca02c"),
        (above, "rejected", "#d62728"),
        (above, "margins", "#1f77b4"),
        (below, "accuracies", "#1f77b4"),
    ):
        axes.plot(steps, [r[f"rewards/{name}"] for r in records], color=colour, label=name)
        if tested:
            values = [r[f"eval_rewards/{name}"] for r in tested]
            axes.plot(validated, values, color=colour, linestyle="none", marker="o", markersize=4)
    above.set(title=f"{title} (dots: validation)", ylabel="reward")
    below.set(xlabel="step", ylabel="chosen preferred", ylim=(-0.02, 1.02))
    return _write(figure, folder / "training_rewards.png")


def _write(figure: Any, path: Path) -> Path:
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path)
    return path
