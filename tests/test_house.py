"""The structure of the source itself: rooms that a newcomer can take in, and tests that do not lean on each other.

The order in which rooms may import each other is import-linter's (`make lint`).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAX_MODULES = 12  # of a folder
MAX_LINES = 300  # of a module
PACKAGES = ("gateway", "finetune", "modelfiles", "studio")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if "node_modules" not in path.parts)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_folder_has_few_modules_and_says_what_it_is(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MAX_MODULES
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), "a sub-package says what is in it"


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_module_is_read_in_one_sitting(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("test", TESTS, ids=name)
def test_tests_share_by_their_support_package_alone(test: Path) -> None:
    for node in ast.walk(ast.parse(test.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            assert parts[0] != "tests" or parts[1] == "support", f"{name(test)} imports {node.module}"
        is_path = isinstance(node, ast.Attribute) and node.attr == "path" and ast.unparse(node) == "sys.path"
        assert not is_path, f"{name(test)} uses sys.path"
