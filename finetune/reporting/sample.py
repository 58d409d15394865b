"""One row of a report: its image, its question, and what was answered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.data.row_media import Video


@dataclass(frozen=True)
class Sample:
    """A question with its images (paths or data URIs) and videos, the right answer, those before and after training."""

    images: list[Path | str | Video]
    question: str
    label: str
    before: str
    after: str
