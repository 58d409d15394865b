"""The log of a training run: one JSON object a line, TensorBoard's files, and trackers of experiments."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from finetune.errors import writing
from finetune.recipe.schema import Recipe
from finetune.reporting.trackers import Tracker, start_trackers


class RunLog:
    """trainer_log.jsonl (LLaMA-Factory's fields), one record a line, and whatever else the recipe reports to.

    resume_step: records after it, left by a run that was killed, are removed. Every method raises FinetuneError if the
    disk refuses; a tracker that fails later is left out, with a warning.
    """

    def __init__(self, folder: Path, recipe: Recipe, resume_step: int, console: Console) -> None:
        self.path, self.console = folder / "trainer_log.jsonl", console
        tensorboard = bool({"tensorboard", "all"} & set(recipe.report_to.split(",")))
        with writing(folder):
            kept = [r for r in read_log(self.path) if r["current_steps"] <= resume_step] if resume_step else []
            self.path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            self._events = EventFile(folder / "runs") if tensorboard else None
        self._trackers = start_trackers(recipe.report_to, folder, recipe.model_dump(exclude_defaults=True))

    def write(self, record: dict[str, Any]) -> None:
        with writing(self.path):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            if self._events is not None:
                self._events.write(record)
        values = {f"train/{key}": value for key, value in curve_points(record).items()}
        self._tell(lambda tracker: tracker.log(values, record["current_steps"]))

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        self._tell(lambda tracker: tracker.finish())

    def _tell(self, work: Callable[[Tracker], None]) -> None:
        """Does the work with every tracker; one that fails must not end the training."""
        for tracker in list(self._trackers):
            try:
                work(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                reason = escape((str(error).strip().splitlines() or [type(error).__name__])[0][:200])
                self.console.print(f"[yellow]Warning:[/] report_to: a tracker fails and is left out: {reason}")


class EventFile:
    """A file of TensorBoard's, written at once: TensorBoard's own writer has a thread, which dies of a full disk."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb", buffering=0))
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, record: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=f"train/{key}", simple_value=value) for key, value in curve_points(record).items()]
        event = Event(wall_time=time.time(), step=record["current_steps"], summary=Summary(value=values))
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._records.close()


def curve_points(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record that make curves."""
    keys = ("loss", "lr", "epoch", "samples_per_second", "throughput", "grad_norm", "eval_loss")
    return {key: float(record[key]) for key in keys if key in record}


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as LLaMA-Factory's log has them."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a trainer_log.jsonl; a line that a killed run left half written is passed over."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
