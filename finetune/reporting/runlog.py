"""The log of a training run: one JSON object a line, and TensorBoard's files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


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
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
