"""One row of a report: its image, its question, and what was answered; and the log of answers during training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.row_media import Video
from finetune.reporting.runlog import read_log

SAMPLE_LOG = "sample_answers.jsonl"


@dataclass(frozen=True)
class Sample:
    """A question with its images (paths or data URIs) and videos, the right answer, those before and after training."""

    images: list[Path | str | Video]
    question: str
    label: str
    before: str
    after: str


def log_samples(path: Path, step: int, samples: Sequence[dict[str, Any]]) -> None:
    """Adds the answers after `step` steps as a JSON line; lines of this step or later are of a run that was killed.

    samples: images (paths), question, label and answer of each row.
    """
    kept = [record for record in read_log(path) if record["step"] < step]
    lines = [json.dumps(record, ensure_ascii=False) for record in (*kept, {"step": step, "answers": list(samples)})]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
