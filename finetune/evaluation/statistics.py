"""Means of scores with bootstrap intervals, and paired comparisons of two runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.evaluation.word_bleu import corpus_bleu

RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """The mean over samples and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def interval(values: Any, seed: int = 0) -> Score:
    """A metric over its samples' values, and its 95 % percentile bootstrap interval."""
    if not len(values):
        return Score(0.0, 0.0, 0.0)
    low, high = np.quantile([_overall(values[drawn]) for drawn in _resamples(len(values), seed)], [0.025, 0.975])
    return Score(_overall(values), float(low), float(high))


def compare(ours: Any, theirs: Any, seed: int = 0) -> tuple[Score, float]:
    """The difference of a metric on paired samples, its bootstrap interval, and the two-sided p of a paired test.

    p is the share of random swaps of the two sides, pair by pair, that differ at least as much (approximate
    randomisation, https://aclanthology.org/W05-0908).
    """
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    observed = _overall(ours) - _overall(theirs)
    differences = [_overall(ours[drawn]) - _overall(theirs[drawn]) for drawn in _resamples(len(ours), seed)]
    low, high = np.quantile(differences, [0.025, 0.975])
    random = np.random.default_rng(seed)
    extreme = 0
    for _ in range(RESAMPLES):
        swapped = (random.integers(0, 2, len(ours)) == 1).reshape(-1, *[1] * (ours.ndim - 1))
        one, other = np.where(swapped, theirs, ours), np.where(swapped, ours, theirs)
        extreme += abs(_overall(one) - _overall(other)) >= abs(observed) - 1e-12
    return Score(observed, float(low), float(high)), (extreme + 1) / (RESAMPLES + 1)


def _overall(values: Any) -> float:
    """The mean of [samples] values; BLEU of [samples, 10] counts."""
    return corpus_bleu(values) if np.ndim(values) == 2 else float(np.mean(values))


def _resamples(size: int, seed: int) -> Iterator[Any]:
    """Indices of RESAMPLES samples of the same size, drawn with replacement."""
    random = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield random.integers(0, size, size)
