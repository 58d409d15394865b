"""Scores of predicted answers against labels."""

from __future__ import annotations

from collections.abc import Sequence


def exact_match(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """The share of predictions equal to their label once both are stripped and case-folded, from 0 to 1."""
    pairs = list(zip(predictions, labels, strict=True))
    return sum(p.strip().casefold() == label.strip().casefold() for p, label in pairs) / len(pairs) if pairs else 0.0
