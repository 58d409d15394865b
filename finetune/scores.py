"""Scores of predicted answers against labels, one value a sample, and their uncertainty.

`bleu-4`, `rouge-1`, `rouge-2` and `rouge-l` are LLaMA-Factory's, digit for digit (its train/sft/metric.py): BLEU over
characters, whatever the language, by nltk's sentence_bleu with smoothing method 3; ROUGE over jieba's words by
rouge-chinese. So a perfect answer of two characters does not reach 100, and one of one word has ROUGE-2 zero.
`word_bleu` is sacrebleu's, of the whole corpus.
"""

from __future__ import annotations

import importlib
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.word_bleu import corpus_bleu, counts

RESAMPLES = 2000
# jieba's words are runs of these characters (its re_han_default) ...
WORD_CHARACTERS = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&._%\-]+)")
HAN = re.compile(r"[\u4E00-\u9FD5]")
# ... of which, without Chinese ones, its dictionary has these, and its model splits the others so.
LATIN_ENTRIES = re.compile(r"(AT&T|[cC]#|[cC]\+\+)")
LATIN_WORDS = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")


@dataclass(frozen=True)
class Score:
    """The mean over samples and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


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
    longest = max(len(ours), len(theirs))
    similarity = 1 - _edit_distance(ours, theirs) / longest if longest else 1.0
    return similarity if similarity >= 0.5 else 0.0


def bleu_4(prediction: str, label: str) -> float:
    """Character BLEU-4 from 0 to 100 with NIST's geometric smoothing (nltk's method3), rounded to 4 digits."""
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


def rouge(prediction: str, label: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L F1 from 0 to 100 over jieba's words, rounded to 4 digits. Raises FinetuneError."""
    ours, theirs = _rouge_words(prediction), _rouge_words(label)
    if ours is None or theirs is None:
        return {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    scores = {}
    for n in (1, 2):
        one, other = ({tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (ours, theirs))
        scores[f"rouge-{n}"] = _f1(len(one & other), len(one), len(other))
    scores["rouge-l"] = _f1(_common_subsequence(ours, theirs), len(ours), len(theirs))
    return scores


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


def _f1(common: int, ours: int, theirs: int) -> float:
    precision, recall = common / ours if ours else 0.0, common / theirs if theirs else 0.0
    return round(100 * (2 * (precision * recall / (precision + recall + 1e-8))), 4)


def _rouge_words(text: str) -> list[str] | None:
    """The words that rouge-chinese compares, or None if there are none.

    It cuts the spaced text into sentences (also after six dots, inside a word) and each sentence at its spaces; a
    sentence of spaces alone counts as an empty word.
    """
    spaced = " ".join(segment(text))
    if not spaced.split():
        return None
    spaced = re.sub("([。！？?])([^”’])", r"\1\n\2", spaced)  # noqa: RUF001 - these are Chinese marks
    spaced = re.sub(r"(\.{6})([^”’])", r"\1\n\2", spaced)  # noqa: RUF001
    sentences = [" ".join(sentence.split()) for sentence in spaced.rstrip().split("\n") if sentence]
    return [word for sentence in sentences for word in sentence.split(" ")]


def segment(text: str) -> list[str]:
    """jieba.cut(text). Without Chinese characters its rules are few and are followed here; else jieba is needed."""
    if HAN.search(text):
        try:
            jieba = importlib.import_module("jieba")
        except ImportError:
            raise FinetuneError("ROUGE of Chinese answers needs jieba; install it (pip install jieba).") from None
        jieba.setLogLevel("ERROR")
        return list(jieba.cut(text))
    words: list[str] = []
    for number, block in enumerate(WORD_CHARACTERS.split(text)):
        if number % 2 == 0:
            words += re.findall(r"\r\n|.", block, re.DOTALL)
            continue
        for part, piece in enumerate(LATIN_ENTRIES.split(block)):
            words += [piece] if part % 2 or len(piece) == 1 else [word for word in LATIN_WORDS.split(piece) if word]
    return words


def _common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before, row = row, [0]
        for index, candidate in enumerate(other):
            row.append(before[index] + 1 if word == candidate else max(before[index + 1], row[index]))
    return row[-1]


def _edit_distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for count, character in enumerate(one, 1):
        before, row = row, [count]
        for index, candidate in enumerate(other):
            row.append(min(before[index + 1] + 1, row[index] + 1, before[index] + (character != candidate)))
    return row[-1]
