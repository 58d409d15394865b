"""ROUGE and its word segmentation as LLaMA-Factory computes them."""

from __future__ import annotations

import importlib
import re

from rapidfuzz.distance import LCSseq

from finetune.errors import FinetuneError

# jieba's words are runs of these characters (its re_han_default) ...
WORD_CHARACTERS = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&._%\-]+)")
HAN = re.compile(r"[\u4E00-\u9FD5]")
# ... of which, without Chinese ones, its dictionary has these, and its model splits the others so.
LATIN_ENTRIES = re.compile(r"(AT&T|[cC]#|[cC]\+\+)")
LATIN_WORDS = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")


def rouge(prediction: str, label: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L F1 from 0 to 100 over jieba's words, rounded to 4 digits. Raises FinetuneError."""
    ours, theirs = _rouge_words(prediction), _rouge_words(label)
    if ours is None or theirs is None:
        return {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    scores = {}
    for n in (1, 2):
        one, other = ({tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (ours, theirs))
        scores[f"rouge-{n}"] = _f1(len(one & other), len(one), len(other))
    scores["rouge-l"] = _f1(LCSseq.similarity(ours, theirs), len(ours), len(theirs))
    return scores


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
