"""BLEU over words of a whole corpus, as sacrebleu computes it: tokens of mteval-v13a, exponential smoothing.

With `effective_order`, so that answers of fewer than four words are not all zero (https://github.com/mjpost/sacrebleu).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np

ORDER = 4
ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
# The rules of mteval-v13a.pl: symbols stand alone, and so do full stops, commas and hyphens but within numbers.
RULES = [
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
]


def words(text: str) -> list[str]:
    """The words of a text, as mteval-v13a cuts them."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in ENTITIES.items():
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text.split()


def counts(prediction: str, label: str) -> list[int]:
    """What a sample adds to the corpus: lengths of prediction and label, matched n-grams, and n-grams, n = 1 to 4."""
    ours, theirs = words(prediction), words(label)
    matched, total = [], []
    for n in range(1, ORDER + 1):
        one, other = (Counter(tuple(side[i : i + n]) for i in range(len(side) - n + 1)) for side in (ours, theirs))
        matched.append(sum((one & other).values()))
        total.append(sum(one.values()))
    return [len(ours), len(theirs), *matched, *total]


def corpus_bleu(samples: Any) -> float:
    """BLEU from 0 to 100 of [samples, 10] counts."""
    predicted, labelled, *rest = np.asarray(samples).sum(0).tolist()
    matched, total = rest[:ORDER], rest[ORDER:]
    orders = [n for n in range(ORDER) if total[n]]
    if not any(matched):
        return 0.0
    logs, halved = 0.0, 1
    for n in orders:
        halved *= 1 if matched[n] else 2
        logs += math.log(matched[n] / total[n] if matched[n] else 1 / (halved * total[n]))
    brevity = 1.0 if predicted >= labelled else math.exp(1 - labelled / predicted)
    return 100 * brevity * math.exp(logs / len(orders))
