"""A file is replaced as a whole or stays as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from modelfiles.folder.atomic_write import new_folder, write_atomically


def test_the_new_content_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("old")
    path.chmod(0o644)
    write_atomically(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("keys.json", "old")]


@pytest.mark.parametrize("durable", [False, True])
def test_a_new_folder_takes_the_place_of_the_old_one_and_of_all_it_held(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "above" / "model"
    for content in ("old", "new"):
        with new_folder(target, durable=durable) as partial:
            (partial / content).write_text(content)
            assert not (target / content).exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_unfinished_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path, stop: BaseException) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")

    def write() -> None:
        with new_folder(target) as partial:
            (partial / "new").write_text("new")
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
