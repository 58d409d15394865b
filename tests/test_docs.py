"""The documents name files and options that are there, and link to pages that are there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

import lensmith
from tests.support.paths import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
TOPS = "gateway|finetune|modelfiles|studio|tests|benchmarks|examples|deploy|scripts|docs|findings"
FILE = re.compile(rf"`((?:{TOPS})/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")
COMMAND = re.compile(r"lensmith ((?:[a-z]+ ?){1,2}[^`\n|&#;]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# History names files as they were.
DATED = {path for path in DOCUMENTS if path.parent.name == "decisions" or path.name == "CHANGELOG.md"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path not in DATED], ids=name)
def test_every_file_that_is_named_is_there(document: Path) -> None:
    named = set(FILE.findall(document.read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(document: Path) -> None:
    links = set(LINK.findall(document.read_text()))
    assert [link for link in sorted(links) if not (document.parent / link).exists()] == []


def command_of(words: list[str]) -> click.Command:
    found: click.Command = lensmith.main
    for word in words:
        if not isinstance(found, click.Group) or (inner := found.get_command(click.Context(found), word)) is None:
            break
        found = inner
    return found


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path not in DATED], ids=name)
def test_every_option_of_a_command_is_one_that_it_has(document: Path) -> None:
    missing = []
    for line in COMMAND.findall(document.read_text().replace("\\\n", " ")):
        if (command := command_of(line.split()[:2])) is lensmith.main:
            continue  # not our command line, but one with this word in it
        have = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        missing += [f"{line} has no {option}" for option in OPTION.findall(line) if option not in have | {"--help"}]
    assert missing == []


def test_the_map_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = (ROOT / "gateway", ROOT / "finetune", ROOT / "modelfiles", ROOT / "studio")
    rooms = {path.parent for package in packages for path in package.glob("*/*.py")}
    assert [name(room) for room in sorted(rooms) if not re.search(rf"\b{room.name}\b", text)] == []
