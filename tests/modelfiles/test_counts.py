"""Numbers with their nouns in what commands print: "1 row", never "1 rows"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfiles import counted

ROOT = Path(__file__).parents[2]
ROOMS = ("finetune", "gateway", "modelfiles")
NOUNS = (
    "answers|blobs|cards|calls|checks|columns|datasets|errors|fields|files|findings|frames|groups|images|jobs|keys|"
    "labels|layers|minutes|pairs|parameters|pictures|problems|processes|prompts|questions|replicas|requests|rows|"
    "samples|shards|steps|tensors|turns|values|videos|warnings|workers"
)
PLURAL = re.compile(rf" (?:(?:broken|health|more|other|such|trainable|vision) )?(?:{NOUNS})\b(?!/s)")
# Values before such a word that are no counts, or are never 1.
OTHERS = {
    "path", "source", "data", "engine.model", "near.size", "near.lmdeploy",  # names, and "small pictures"
    "len(answer)", "len(row.images)", "len(indices)", "max(0, frames)", "max(rows)",  # what is refused for being many
    "labels_of(kept).sum(dtype=int)",  # of tokens
    "len(counts)",  # inside LMDeploy
}  # fmt: skip


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (2, ("row",), "2 rows"),
        (1204, ("broken row is", "broken rows are"), "1,204 broken rows are"),
        (1, ("broken row is", "broken rows are"), "1 broken row is"),
    ],
)
def test_a_number_has_the_right_noun(count: int, words: tuple[str, ...], text: str) -> None:
    assert counted(count, *words) == text


def texts() -> Iterator[tuple[str, ast.JoinedStr]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def plurals(text: ast.JoinedStr) -> Iterator[str]:
    """Where a text puts a value before a plural noun that stands there whatever the value is."""
    for value, after in zip(text.values, text.values[1:], strict=False):
        if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
            continue
        written, found = ast.unparse(value.value), PLURAL.match(after.value)
        is_rate = value.format_spec is not None and "." in ast.unparse(value.format_spec)
        if found and not (written.isupper() or is_rate or written in OTHERS or written.startswith("counted(")):
            yield f"{{{written}}}{found[0]}"


def test_no_text_says_1_rows() -> None:
    wrong = [f"{location}: {plural}" for location, text in texts() for plural in plurals(text)]
    assert not wrong, "use modelfiles.counted: " + "; ".join(wrong)


def test_a_plural_that_stands_whatever_the_number_is_is_found() -> None:
    text = next(node for node in ast.walk(ast.parse('f"{len(x):,} broken rows"')) if isinstance(node, ast.JoinedStr))
    assert list(plurals(text)) == ["{len(x)} broken rows"]
