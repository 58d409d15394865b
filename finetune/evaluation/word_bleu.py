"""BLEU over words of a whole corpus: sacrebleu's, with its defaults (tokens of mteval-v13a, exponential smoothing).

With `effective_order`, so that answers of fewer than four words are not all zero (https://github.com/mjpost/sacrebleu).
Each sample's counts are kept apart, so that corpora drawn from the samples can be scored without cutting words anew.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

ORDER = 4


def counts(prediction: str, label: str) -> list[int]:
    """What a sample adds to the corpus: lengths of prediction and label, matched n-grams, and n-grams, n = 1 to 4."""
    score = _metric().sentence_score(prediction, [label])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def corpus_bleu(samples: Any) -> float:
    """BLEU from 0 to 100 of [samples, 10] counts."""
    predicted, labelled, *rest = np.asarray(samples).sum(0).astype(int).tolist()
    score = _metric().compute_bleu(
        correct=rest[:ORDER],
        total=rest[ORDER:],
        sys_len=predicted,
        ref_len=labelled,
        smooth_method="exp",
        effective_order=True,
    )
    return float(score.score)


@cache
def _metric() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)
