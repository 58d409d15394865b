from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from finetune.errors import FinetuneError
from finetune.evaluation.metrics import anls, bleu_4, exact_match, score_all, token_f1
from finetune.evaluation.rouge import rouge, segment
from finetune.evaluation.statistics import compare, interval
from finetune.evaluation.word_bleu import corpus_bleu

# Made by running jieba 0.42.1, rouge-chinese 1.0.3 and nltk 3.10.4 as LLaMA-Factory's metric does.
GOLDEN = json.loads((Path(__file__).parent / "scores_golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_bleu_and_rouge_are_llama_factorys(case: dict[str, Any]) -> None:
    assert segment(case["predict"]) == case["words"]
    assert bleu_4(case["predict"], case["label"]) == case["bleu-4"]
    assert rouge(case["predict"], case["label"]) == {key: case[key] for key in ("rouge-1", "rouge-2", "rouge-l")}


@pytest.mark.parametrize(
    ("prediction", "label", "bleu", "rouge_2"),
    [
        ("Yes", "Yes", 84.0896, 0.0),
        ("White", "White", 100.0, 0.0),
        ("brown", "black", 10.6818, 0.0),
        ("A red chair near the table", "The red chair next to the table", 67.0009, 36.3636),
    ],
)
def test_the_published_table(prediction: str, label: str, bleu: float, rouge_2: float) -> None:
    assert bleu_4(prediction, label) == pytest.approx(bleu, abs=0.01)
    assert rouge(prediction, label)["rouge-2"] == pytest.approx(rouge_2, abs=0.01)


def test_exact_match_forgives_case_and_spaces_only() -> None:
    pairs = [("Red ", "red"), ("red.", "red"), ("STRASSE", "straße"), ("", "")]
    assert [exact_match(*pair) for pair in pairs] == [1, 0, 1, 1]


def test_token_f1_is_squads() -> None:
    assert token_f1("The red chair!", "a red chair") == 1
    assert token_f1("red chair", "red table") == 0.5
    assert token_f1("the", "red") == 0


def test_anls_forgives_small_errors_only() -> None:
    assert anls("Chairs", "chair") == pytest.approx(5 / 6)
    assert anls("ab", "cd") == 0
    assert anls("", "") == 1


texts = st.text(alphabet="ab. ?!\n%+#", max_size=30)


@given(one=texts, other=texts)
def test_scores_stay_in_range_and_equal_texts_score_best(one: str, other: str) -> None:
    for prediction, label in ((one, other), (one, one)):
        values = score_all([prediction], [label])
        for name, value in values.items():
            if name == "word_bleu":
                assert 0 <= corpus_bleu(value) <= 100 + 1e-9
                continue
            assert 0 <= value[0] <= (100 if name.startswith(("bleu", "rouge")) else 1)
    assert token_f1(one, one) == anls(one, one) == exact_match(one, one) == 1


@given(text=texts)
def test_segmenting_loses_nothing(text: str) -> None:
    assert "".join(segment(text)) == text


def test_an_interval_holds_the_mean_and_narrows_with_samples() -> None:
    few, many = np.array([0.0, 1.0] * 10), np.array([0.0, 1.0] * 1000)
    assert interval(few).low < 0.5 < interval(few).high
    assert interval(many).high - interval(many).low < 0.06
    assert interval(few) == interval(few)
    assert interval(np.array([])).mean == 0


def test_chance_is_not_called_a_difference() -> None:
    random = np.random.default_rng(3)
    ours, theirs = random.integers(0, 2, 200), random.integers(0, 2, 200)
    difference, p = compare(ours, theirs)
    assert p > 0.05
    assert difference.low < 0 < difference.high


def test_chinese_rouge_asks_for_jieba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(FinetuneError, match="needs jieba"):
        rouge("\u7ea2\u8272", "\u7ea2\u8272")
    assert bleu_4("\u7ea2\u8272\u7684\u6905\u5b50", "\u7ea2\u8272\u7684\u6905\u5b50") == 100


WORDS = st.sampled_from(["red", "two dogs, 3.5 m", "it's 1-2 &quot;x&quot;", "-\n"])
ANSWERS = st.lists(st.text("ab c.,-1 2&%'\"<>\n/;é红", max_size=12) | WORDS, min_size=1, max_size=8)


@given(predictions=ANSWERS, labels=ANSWERS)
def test_word_bleu_is_sacrebleus(predictions: list[str], labels: list[str]) -> None:
    pairs = list(zip(predictions, labels, strict=False))
    counted = score_all(*zip(*pairs, strict=True), with_rouge=False)["word_bleu"]
    theirs = BLEU(effective_order=True).corpus_score([p for p, _ in pairs], [[label for _, label in pairs]]).score
    assert corpus_bleu(counted) == pytest.approx(theirs)


def test_word_bleu_of_two_runs_is_compared_over_the_corpus() -> None:
    labels = [f"a {colour} shape on the left side" for colour in ("red", "blue", "green", "black")] * 10
    worse = [label.replace("left", "right") if n % 2 else label for n, label in enumerate(labels)]
    good, bad = (score_all(texts, labels, with_rouge=False)["word_bleu"] for texts in (labels, worse))
    difference, p = compare(good, bad)
    assert difference.mean == pytest.approx(100 - corpus_bleu(bad))
    assert 0 < difference.low < difference.mean < difference.high < 100
    assert p < 0.01
    assert compare(good, good)[1] == 1
