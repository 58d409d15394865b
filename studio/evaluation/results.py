"""The scores of an evaluation as its job wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = "results.json"
# Metrics as people read them, the first ones first, and what makes percent of each.
METRICS = {
    "exact_match": 100.0,
    "token_f1": 100.0,
    "anls": 100.0,
    "bleu-4": 1.0,
    "rouge-l": 1.0,
    "word_bleu": 1.0,
}


def read_results(folder: Path) -> dict[str, Any] | None:
    """{"sides", "scores": {side: {metric: {"mean", "low", "high"}}}, "differences": [...]}; None before the end."""
    try:
        found: dict[str, Any] = json.loads((folder / RESULTS).read_bytes())
    except (OSError, ValueError):
        return None
    return found
