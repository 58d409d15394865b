"""A small dataset of drawn shapes with a right and a wrong answer to each question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.finetune.shapes_data import COLOURS, ask, write_dataset

# Keys of a recipe that learns from it.
DPO: dict[str, Any] = {"stage": "dpo", "dataset": "pairs", "eval_dataset": None, "pref_beta": 0.5}


def prefer(question: str, chosen: str, rejected: str, *images: int) -> dict[str, Any]:
    """One ShareGPT row with two answers, as LLaMA-Factory has it."""
    row = ask(question, chosen, *images)
    (asked, answer) = row["conversations"]
    return row | {"conversations": [asked], "chosen": answer, "rejected": answer | {"value": rejected}}


def write_pairs(folder: Path) -> Path:
    """24 pairs: two questions for each of eight images, one about two of them, and one without any."""
    rows = []
    for number in range(8):
        colour, other = COLOURS[number // 2], COLOURS[(number // 2 + 1) % 4]
        rows.append(prefer("what color is the shape?", colour, f"{other} I think", number))
        rows.append(prefer("what is it?", f"a {colour} rectangle", f"a {other} circle", number))
        rows.append(
            prefer("same color?", "no", "yes, both", number, 7 - number) if number % 2 else prefer("hello", "hi", "no")
        )
    return write_dataset(folder, rows, "pairs", ranking=True)
