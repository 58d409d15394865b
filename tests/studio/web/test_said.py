"""What `lensmith check` and training say in English is said in Chinese on the Chinese pages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from finetune.memory.cards import Card
from finetune.memory.estimate import estimate
from finetune.memory.heaviest_load import MicroBatchLoad
from finetune.memory.plan import Plan
from finetune.model.folder import open_base
from finetune.recipe.load import make_recipe
from modelfiles import counted
from studio.web.said import said, shown
from tests.support.paths import ROOT, SHAPES_VL

CHINESE = re.compile(r"[\u4e00-\u9fff]")
SAYS = ("say", "warn", "error")  # methods of finetune.preflight.report.Report


def text_of(node: ast.expr) -> str | None:
    """A sentence that code writes, 7 in each place; None if it only hands on what others say."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [text_of(value) if isinstance(value, ast.Constant) else _filled(value) for value in node.values]
        return "".join(part or "" for part in parts)
    if isinstance(node, ast.BinOp) and (left := text_of(node.left)) is not None:
        return left + (text_of(node.right) or "7")
    if isinstance(node, ast.Call):
        return _count(node)
    return text_of(node.body) if isinstance(node, ast.IfExp) else None


def _count(node: ast.Call) -> str | None:
    """7 of what `counted` counts; None for another call."""
    if not isinstance(node.func, ast.Name) or node.func.id != "counted":
        return None
    nouns = [text_of(noun) or "7" for noun in node.args[1:]]
    return counted(7, *nouns)


def _filled(node: ast.expr) -> str:
    assert isinstance(node, ast.FormattedValue)
    return (text_of(node.value) if isinstance(node.value, ast.IfExp | ast.Call) else None) or "7"


def sentences() -> dict[str, str]:
    """The sentences that `check` writes, and out_of_memory's, by where they stand."""
    found = {}
    for path in [*(ROOT / "finetune" / "preflight").glob("*.py"), ROOT / "finetune" / "training" / "oom.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            says = isinstance(node.func, ast.Attribute) and node.func.attr in SAYS
            raised = path.name == "oom.py" and isinstance(node.func, ast.Name) and node.func.id == "FinetuneError"
            text = text_of(node.args[0]) if says or raised else None
            if text is not None:
                found[f"{path.name}:{node.lineno}"] = re.sub(r"\[/?\w*\]", "", text)
    return found


def test_every_sentence_of_a_check_has_a_translation() -> None:
    """A new one belongs into both files locales/LANGUAGE/program.json."""
    found = sentences()
    assert len(found) > 25
    assert {where: text for where, text in found.items() if not said("zh", text)} == {}


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("training does not fit the memory of Tesla T4; with quantization_bit=4 it would.", "Tesla T4"),
        ("rows.jsonl, row 3: the image a.png: the file does not exist.", "文件不存在"),
        ("left out: x.jsonl, row 3: the image a.png: the file does not exist.", "文件不存在"),
        ("Measured 2.50 samples/s, 3.1 GiB at most: about 12 minutes without validation", "3.1 GiB"),
        (
            "The GPU is out of memory; it should fit with per_device_train_batch_size=1.",
            "per_device_train_batch_size=1",
        ),
    ],
)
def test_a_sentence_keeps_its_figures(sentence: str, told: str) -> None:
    chinese = said("zh", sentence)
    assert chinese is not None
    assert told in chinese
    assert CHINESE.search(chinese)
    assert said("en", sentence) == sentence


def test_no_word_of_the_memory_stays_english(tmp_path: Path) -> None:
    card, load = Card("T4", 15.0, (7, 5)), MicroBatchLoad(rows=1, tokens=64, labels=8, image_tokens=16, patches=64)
    recipe = make_recipe({"model_name_or_path": str(SHAPES_VL), "dataset": "d", "output_dir": str(tmp_path)})
    for changes in ({}, {"quantization_bit": 4}, {"finetuning_type": "full", "stage": "dpo"}):
        layered = "stage" not in changes
        needed = estimate(open_base(recipe), recipe.model_copy(update=changes), load, card, layered=layered)
        for moment in needed.moments:
            parts = ", ".join(f"{name} 1.25" for name in (*needed.model_states, f"activations ({moment})"))
            chinese = said("zh", f"Memory on T4: about 3.25 of 15.0 GiB ({parts}, workspace and gaps 0.50)")
            assert chinese is not None
            assert set(re.findall(r"[A-Za-z]+", chinese)) == {"T", "GiB"}
            assert chinese.count(" 1.25") == len(needed.model_states) + 1
    for kept in (0, 3, 28):
        words = Plan(8, 2, kept, 28, None).activations
        chinese = said("zh", f"Gradient checkpointing: training keeps {words}, as memory allows")
        assert chinese is not None
        assert not re.search(r"[A-Za-z]", chinese)


def test_what_has_no_translation_is_marked_as_english_and_is_never_html() -> None:
    assert str(shown("zh", "an <b>unknown</b> word")) == '<span lang="en">an &lt;b&gt;unknown&lt;/b&gt; word</span>'
