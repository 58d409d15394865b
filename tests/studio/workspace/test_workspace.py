"""Names and paths from outside, and things that are made once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from studio.errors import StudioError
from studio.workspace.folder import Workspace
from studio.workspace.names import check_name, check_relative_path, path_inside


@pytest.mark.parametrize("name", ["a", "shapes-2.1_x", "发票", "Ünïcode", "x" * 64])
def test_a_name_in_any_script_is_taken(name: str, tmp_path: Path) -> None:
    Workspace(tmp_path).create("runs", name)
    assert Workspace(tmp_path).names("runs") == [check_name(name)]


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        ".hidden",
        "-rf",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "x" * 65,
        "发" * 64 + "票",
        "a:b",
        "~",
        "$HOME",
        "a b",
        "<b>",
    ],
)
def test_a_name_that_could_do_harm_is_refused(name: str) -> None:
    with pytest.raises(StudioError):
        check_name(name)


@pytest.mark.parametrize("text", ["a.png", "some folder/a b.png", "图/1.png", "a\\b.png", "./a.png"])
def test_a_path_of_an_upload_is_taken(text: str) -> None:
    assert not check_relative_path(text).is_absolute()


@pytest.mark.parametrize(
    "text", ["", "/etc/passwd", "../x", "a/../../x", "..\\x", "C:\\x", "c:/x", "a\0b", "a\nb", "x" * 256, "\\\\host\\x"]
)
def test_a_path_that_leads_out_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(StudioError):
        path_inside(tmp_path, text)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "out").symlink_to("/etc")
    with pytest.raises(StudioError):
        path_inside(inside, "out/passwd")


def test_of_many_that_make_the_same_thing_one_does(tmp_path: Path) -> None:
    workspace, outcomes = Workspace(tmp_path), []

    def make() -> None:
        try:
            outcomes.append(workspace.create("runs", "one").name)
        except StudioError as error:
            outcomes.append(str(error.status))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["409"] * 7 + ["one"]
    assert workspace.free_name("runs", "one") == "one-2"


def test_the_secret_is_this_workspace_s_and_for_its_owner_only(tmp_path: Path) -> None:
    secret = Workspace(tmp_path / "a").secret()
    assert Workspace(tmp_path / "a").secret() == secret != Workspace(tmp_path / "b").secret()
    assert (tmp_path / "a" / ".secret").stat().st_mode & 0o777 == 0o600
