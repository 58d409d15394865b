"""A run's records: the progress bar, trainer_log.jsonl, TensorBoard events and the loss curve."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(console: Console, name: str, figures: str) -> Progress:
    """A bar with counts, `figures` (rich markup over the task's fields), the time so far and the time left."""
    return Progress(
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(figures),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )


class RunLog:
    """trainer_log.jsonl (LLaMA-Factory's fields) and runs/, one record a line.

    resume_step: records after it, left by a run that was killed, are removed.
    """

    def __init__(self, folder: Path, tensorboard: bool, resume_step: int) -> None:
        self.path = folder / "trainer_log.jsonl"
        kept = [r for r in read_log(self.path) if r["current_steps"] <= resume_step] if resume_step else []
        self.path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._writer: Any = None
        if tensorboard:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._writer = EventFileWriter(str(folder / "runs"))

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._writer is not None:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = [
                Summary.Value(tag=f"train/{key}", simple_value=float(record[key]))
                for key in ("loss", "lr", "epoch", "samples_per_second", "throughput", "grad_norm", "eval_loss")
                if key in record
            ]
            event = Event(wall_time=time.time(), step=record["current_steps"], summary=Summary(value=values))
            self._writer.add_event(event)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as LLaMA-Factory's log has them."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a trainer_log.jsonl; a line that a killed run left half written is passed over."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


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
