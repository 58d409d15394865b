"""Scores of predicted answers against labels, one value a sample, and their uncertainty.

`bleu-4`, `rouge-1`, `rouge-2` and `rouge-l` are LLaMA-Factory's, digit for digit (its train/sft/metric.py): BLEU over
characters, whatever the language, by nltk's sentence_bleu with smoothing method 3; ROUGE over jieba's words by
rouge-chinese. So a perfect answer of two characters does not reach 100, and one of one word has ROUGE-2 zero.
`word_bleu` is sacrebleu's, of the whole corpus.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from finetune.evaluation.rouge import rouge
from finetune.evaluation.word_bleu import counts


def exact_match(prediction: str, label: str) -> float:
    """1 if both are equal once stripped and case-folded."""
    return float(prediction.strip().casefold() == label.strip().casefold())


def token_f1(prediction: str, label: str) -> float:
    """F1 of the words as SQuAD compares them: lower case, without punctuation and articles (arXiv:1606.05250)."""

    def words(text: str) -> list[str]:
        text = "".join(character for character in text.lower() if character not in string.punctuation)
        return [word for word in text.split() if word not in ("a", "an", "the")]

    ours, theirs = words(prediction), words(label)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def anls(prediction: str, label: str) -> float:
    """1 - normalised edit distance of the lower-case texts, 0 if that is below 0.5 (arXiv:1905.13648)."""
    ours, theirs = prediction.strip().lower(), label.strip().lower()
    similarity = Levenshtein.normalized_similarity(ours, theirs)
    return similarity if similarity >= 0.5 else 0.0


def bleu_4(prediction: str, label: str) -> float:
    """Character BLEU-4 from 0 to 100 with NIST's geometric smoothing (nltk's method3), rounded to 4 digits.

    Computed here rather than by nltk, whose versions differ in these digits; those of LLaMA-Factory's time are kept.
    """
    logs, smoothed = 0.0, 0
    for n in range(1, 5):
        ours = Counter(prediction[i : i + n] for i in range(len(prediction) - n + 1))
        theirs = Counter(label[i : i + n] for i in range(len(label) - n + 1))
        matched, total = sum((ours & theirs).values()), max(1, sum(ours.values()))
        if matched == 0:
            if n == 1:
                return 0.0
            smoothed += 1
        logs += 0.25 * math.log(matched / total if matched else 1 / (2**smoothed * total))
    brevity = 1.0 if len(prediction) > len(label) else math.exp(1 - len(label) / len(prediction))
    return round(100 * brevity * math.exp(logs), 4)


def score_all(predictions: Sequence[str], labels: Sequence[str], with_rouge: bool = True) -> dict[str, Any]:
    """Every metric for every sample: name -> [samples] values, or [samples, 10] counts for the corpus's word BLEU.

    Raises FinetuneError if ROUGE needs jieba.
    """
    pairs = list(zip(predictions, labels, strict=True))
    plain: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "token_f1": token_f1, "anls": anls}
    values: dict[str, Any] = {name: [metric(*pair) for pair in pairs] for name, metric in plain.items()}
    values["bleu-4"] = [bleu_4(*pair) for pair in pairs]
    if with_rouge:
        rouges = [rouge(*pair) for pair in pairs]
        values |= {name: [scores[name] for scores in rouges] for name in ("rouge-1", "rouge-2", "rouge-l")}
    values["word_bleu"] = [counts(*pair) for pair in pairs]
    return {name: np.array(found, dtype=float) for name, found in values.items()}
