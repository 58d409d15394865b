#!/usr/bin/env bash
# Expected: BLEU, METEOR and CIDEr lie between 0 and a maximum, and predictions that equal their references reach
# the maximum. So a set with every answer right scores 100, and a set with most answers wrong scores low.
#
# What happens with the one-word answers of visual question answering, where every prediction equals its reference:
# - corpus BLEU (sacreBLEU) is 0.0: there are no 2-grams to match, and an order without n-grams counts as precision
#   0. One longer right answer among them lifts the same score from 0 to 100. With all the one-word answers wrong
#   and the long one right it is still 88: the short answers hardly count.
# - sentence BLEU (nltk) is 100, 35, 18 or 0 by the smoothing method chosen, all of which come from one paper.
# - METEOR (nltk) is 0.5: one matched word is one chunk, and that has the full fragmentation penalty.
# - CIDEr is 2.5 of 10 (the mean of four n-gram orders, three of them empty), and 0 on a set whose references are
#   all alike.
#
# Versions: sacrebleu 2.6.0, nltk 3.10.4, pycocoevalcap 1.2, Python 3.11.
#
# Why it matters: some fine-tuning tools report these by default, and captioning papers do. A fine-tuned model whose
# answers are all right shows BLEU 0 or METEOR 50, and two evaluation sets that differ in the length of their
# answers cannot be compared at all. sacrebleu.sentence_bleu gives 100 for each of the same answers, as it leaves
# empty orders out by default (effective order). For short answers exact match, token F1 or ANLS say what is meant.
#
# Source: sacrebleu's documentation of effective_order (off for corpora, on for sentences); nltk's
# bleu_score.SmoothingFunction and meteor_score; pycocoevalcap's cider_scorer (mean over n = 1..4, document
# frequency from the references).
#
# Output seen (every prediction equals its reference, unless said):
#   sacreBLEU, corpus of yes / no / red / two          0.0
#   sacreBLEU, the same and one answer of six words    100.0
#   sacreBLEU, one-word answers wrong, long one right  88.0
#   sacreBLEU, 'yes' as a sentence                     100.0
#   nltk BLEU, 'yes', smoothing methods 0, 1, 3, 4     0.0, 17.8, 35.4, 100.0
#   nltk METEOR, 'yes'                                 0.5
#   CIDEr (up to 10), yes / no / red / two             2.5
#   CIDEr (up to 10), yes / yes / yes / yes            0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq sacrebleu==2.6.0 nltk==3.10.4 numpy==2.3.5
"$work/venv/bin/pip" install -qq --no-deps pycocoevalcap==1.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import single_meteor_score
from pycocoevalcap.cider.cider import Cider

words, long_answer = ["yes", "no", "red", "two"], "a red chair beside the table"


class NoSynonyms:
    """Stands for WordNet, which is asked only about words that do not match."""

    def synsets(self, word):
        return []


def corpus(predictions, references):
    return sacrebleu.corpus_bleu(predictions, [references]).score


def sentence(method):
    return 100 * sentence_bleu([["yes"]], ["yes"], smoothing_function=getattr(SmoothingFunction(), method))


def cider(answers):
    numbered = {number: [answer] for number, answer in enumerate(answers)}
    return float(Cider().compute_score(numbered, numbered)[0])


mixed = [*words, long_answer]
mostly_wrong = ["no", "yes", "blue", "nine", long_answer]
smoothed = [sentence(f"method{number}") for number in (0, 1, 3, 4)]
rows = [
    ("sacreBLEU, corpus of yes / no / red / two", [corpus(words, words)], [0.0]),
    ("sacreBLEU, the same and one answer of six words", [corpus(mixed, mixed)], [100.0]),
    ("sacreBLEU, one-word answers wrong, long one right", [corpus(mostly_wrong, mixed)], [88.0]),
    ("sacreBLEU, 'yes' as a sentence", [sacrebleu.sentence_bleu("yes", ["yes"]).score], [100.0]),
    ("nltk BLEU, 'yes', smoothing methods 0, 1, 3, 4", smoothed, [0.0, 17.8, 35.4, 100.0]),
    ("nltk METEOR, 'yes'", [single_meteor_score(["yes"], ["yes"], wordnet=NoSynonyms())], [0.5]),
    ("CIDEr (up to 10), yes / no / red / two", [cider(words)], [2.5]),
    ("CIDEr (up to 10), yes / yes / yes / yes", [cider(["yes"] * 4)], [0.0]),
]
for name, scores, expected in rows:
    if [round(score, 1) for score in scores] != expected:
        sys.exit(f"The behaviour has changed: {name} now gives {scores} and not {expected}.")
    print(f"{name:<50} {', '.join(f'{score:.1f}' for score in scores)}")
PY
