"""Sample answers as they change during training (sample_answers.jsonl of a run's output)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.reporting.runlog import read_log
from finetune.reporting.sample import SAMPLE_LOG
from studio.errors import StudioError
from studio.runs.run import Run

_KEYS = {"images", "question", "label", "answer"}


def sample_rows(run: Run) -> tuple[list[int], list[dict[str, Any]]]:
    """The steps at which samples were answered, and each sample: images (a count), question, label, answers by step."""
    records = [record for record in read_log(run.output / SAMPLE_LOG) if _is_whole(record)]
    if not records:
        return [], []
    last = records[-1]["answers"]
    rows = []
    for index, sample in enumerate(last):
        answers = [record["answers"][index]["answer"] for record in records if index < len(record["answers"])]
        rows.append(
            {key: sample[key] for key in ("question", "label")} | {"images": sample["images"], "answers": answers}
        )
    return [record["step"] for record in records], rows


def _is_whole(record: Any) -> bool:
    """Whether a line has what is shown of it."""
    answers = record.get("answers") if isinstance(record, dict) else None
    return isinstance(answers, list) and "step" in record and all(one.keys() >= _KEYS for one in answers)


def sample_image(run: Run, sample: int, image: int) -> Path:
    """A sample's image file, by numbers and not by a path from outside. Raises StudioError (404)."""
    _, rows = sample_rows(run)
    try:
        path = run.workspace / str(rows[sample]["images"][image])  # training's paths are relative to where it ran
    except (IndexError, TypeError):
        raise StudioError("errors.missing", status=404, name=f"{sample}/{image}") from None
    if min(sample, image) < 0 or not path.is_file():
        raise StudioError("errors.missing", status=404, name=path.name)
    return path
