"""Wrong, broken and hostile input: a sentence on the page, nothing lost, nothing outside the folder."""

from __future__ import annotations

import errno
import html
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.datasets import archives, uploads
from studio.datasets.store import dataset_of
from studio.web.render import Studio
from tests.support.gateway.processes import until
from tests.support.studio.datasets import imported, lines, new_dataset, picture, read_rows, zipped


def problems(studio: Studio, name: str = "mine") -> list[str]:
    """What is wrong with the rows of the newest version, in order."""
    rows = dataset_of(studio.workspace, name).version().index.all_rows()
    return [row.problem for row in rows if row.problem]


def test_a_path_that_is_not_there(client: TestClient) -> None:
    client.post("/data", data={"source": "path", "value": "/nowhere/photos"}, follow_redirects=False)
    until("it ends", lambda: client.get("/data/photos/progress").status_code == 204)
    page = client.get("/data/photos", headers={"accept": "text/html"}).text
    assert "There is no /nowhere/photos on the machine of the studio." in page


@pytest.mark.parametrize(
    "files", [{}, {"notes.doc": b"hello"}, {"rows.jsonl": b"\n"}], ids=["none", "unknown", "empty"]
)
def test_a_dataset_without_rows(client: TestClient, files: dict[str, bytes]) -> None:
    page = imported(client, files)
    assert "Add some." in page


def test_a_data_file_that_is_none(client: TestClient, studio: Studio) -> None:
    page = imported(client, {"rows.jsonl": lines({"question": "a", "answer": "b"}) + b"{nonsense"})
    assert "rows.jsonl, line 2: not JSON" in page
    assert (dataset_of(studio.workspace, "mine").files / "rows.jsonl").is_file()


def test_a_line_that_is_no_json_is_a_row_to_mend_and_keeps_no_other_row_out(client: TestClient, studio: Studio) -> None:
    row = {"question": "a", "answer": "b"}
    page = imported(client, {"rows.jsonl": lines(row) + b'{"question": "c", "answer"\n' + lines(row)})
    dataset = dataset_of(studio.workspace, "mine")
    assert dataset.version().trainable == 2
    assert page.index("rows.jsonl, line 2") < page.index("rows.jsonl, row 1")
    number = next(row.number for row in dataset.version().index.all_rows() if row.problem)
    assert '{"question": "c", "answer"' in html.unescape(client.get(f"/data/mine/rows/{number}").text)
    client.post(f"/data/mine/rows/{number}", data={"raw": '{"question": "c", "answer": "d"}'})
    client.post("/data/mine/save")
    assert dataset.version().trainable == 3


def test_broken_rows_and_pictures_come_first_and_are_not_trained_on(client: TestClient, studio: Studio) -> None:
    row = {"question": "<image>What?", "answer": "red", "image": "whole.png"}
    half = picture(size=(400, 300), kind="JPEG")[:900]
    records = [
        row,
        row | {"image": "half.jpg"},
        row | {"image": "gone.png"},
        row | {"answer": None},
        row | {"answer": ""},
    ]
    page = imported(client, {"rows.jsonl": lines(*records), "whole.png": picture(), "half.jpg": half})
    found = problems(studio)
    assert len(found) == 4
    assert "half.jpg" in found[0]
    assert "gone.png: the file does not exist" in found[1]
    assert dataset_of(studio.workspace, "mine").version().trainable == 1
    assert page.index("gone.png") < page.index("row 1</span>")


def test_a_row_that_cannot_be_read_is_mended(client: TestClient, studio: Studio) -> None:
    turns = [{"role": "user", "content": "<image>Hello"}, {"role": "assistant", "content": "Hi"}]
    good = {"messages": turns, "images": ["a.png"]}
    rows = lines(good, good | {"messages": turns[:1]})
    imported(client, {"data/rows.jsonl": rows, "data/a.png": picture(), "data/b/c.png": picture()})
    number = next(row.number for row in dataset_of(studio.workspace, "mine").version().index.all_rows() if row.problem)
    assert "The row as JSON" in client.get(f"/data/mine/rows/{number}").text
    client.post(f"/data/mine/rows/{number}", data={"raw": lines(good).decode()})
    client.post("/data/mine/save")
    assert dataset_of(studio.workspace, "mine").version().trainable == 2
    assert client.get(f"/data/mine/pictures/{number}/0").status_code == 200
    assert "not JSON" in client.post(f"/data/mine/rows/{number}", data={"raw": "{"}).json()["error"]


def test_rows_of_an_upload_cannot_name_files_of_the_machine(client: TestClient, studio: Studio, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    row = {"question": "<image>What?", "answer": "red"}
    names = [str(secret), os.path.relpath(secret, tmp_path / "workspace/datasets/mine/files"), f"file://{secret}"]
    imported(client, {"rows.jsonl": lines(*(row | {"image": name} for name in names))})
    assert len(problems(studio)) == 3
    assert client.get("/data/mine/pictures/1/0").status_code == 404
    edit = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "x"}]}
    changed = client.post("/data/mine/rows/1", data={"raw": lines(edit | {"images": [str(secret)]}).decode()})
    assert "A row can only have pictures of its own dataset" in changed.json()["error"]
    assert client.get("/data/mine/pictures/1/0").status_code == 404


@pytest.mark.parametrize(
    "path", ["../evil.txt", "a/../../evil.txt", "%2e%2e/evil.txt", "/etc/evil", "a%00b", "C:%5Cevil", "x" * 300]
)
def test_hostile_names_of_uploads_are_refused(client: TestClient, tmp_path: Path, path: str) -> None:
    name = new_dataset(client)
    answer = client.put(f"/data/{name}/files/{path}", content=b"x")
    assert answer.status_code in (400, 404, 405)
    assert not [found for found in tmp_path.rglob("*") if "evil" in found.name]


def test_names_that_are_only_unusual_are_served(client: TestClient, studio: Studio) -> None:
    names = ["a b/été #1 100%.png", "图片/猫.png", "<img src=x onerror=alert(1)>.png"]
    files = {name.replace("%", "%25").replace("#", "%23"): picture() for name in names}
    page = imported(client, files)
    assert "<img src=x" not in page
    assert len(list(dataset_of(studio.workspace, "mine").version().index.all_rows())) == 3
    assert [client.get(f"/data/mine/pictures/{number}/0").status_code for number in (1, 2, 3)] == [200] * 3


def test_text_of_rows_is_never_html(client: TestClient) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"
    record = {"question": f"<image>{evil}", "answer": evil, "image": "a.png"}
    page = imported(client, {"rows.jsonl": lines(record, {"question": evil, "answer": 5}), "a.png": picture()})
    for text in (page, client.get("/data/mine/rows/1").text, client.get("/data/mine/rows/2").text):
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert(1)" in text


def test_a_picture_is_sent_as_a_picture_whatever_the_file_holds(client: TestClient) -> None:
    page = picture() + b"<script>alert(1)</script>"
    imported(client, {"a.png": page, "a.txt": b"x", "b.png": b"<svg onload='alert(1)'/>", "b.txt": b"x"})
    sent = client.get("/data/mine/pictures/1/0?large=true")
    assert sent.headers["content-type"] == "image/webp"
    assert b"script" not in sent.content
    assert client.get("/data/mine/pictures/2/0").status_code == 404


def test_a_zip_bomb_is_stopped_while_it_unpacks(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(archives, "SLACK", 1_000_000)
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(zipped({"a/1.png": bytes(20_000_000)}))
    with pytest.raises(archives.StudioError, match=r"data\.error_archive_bomb"):
        archives.unpack(bomb, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_zip_whose_sizes_lie_is_no_way_around_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SLACK", 1_000_000)
    data = zipped({"1.png": bytes(20_000_000)})
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(data.replace((20_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(archives.StudioError):
        archives.unpack(bomb, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt"])
def test_an_archive_cannot_write_outside_its_folder(client: TestClient, tmp_path: Path, name: str) -> None:
    page = imported(client, {"a.zip": zipped({"ok.png": picture(), name: b"x"})})
    assert "leads out of its folder" in page
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_in_archives_are_left_out(client: TestClient, studio: Studio, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("cat.png", picture())
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as packed:
        info = tarfile.TarInfo("other.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(info)
        info = tarfile.TarInfo("dog.png")
        info.size = len(picture())
        packed.addfile(info, io.BytesIO(picture()))
    imported(client, {"a.zip": buffer.getvalue(), "b.tar.gz": tar.getvalue()})
    files = [path for path in dataset_of(studio.workspace, "mine").files.rglob("*") if not path.is_dir()]
    assert sorted(path.name for path in files) == ["cat.png", "dog.png"]
    assert not any(path.is_symlink() for path in files)


@pytest.mark.parametrize("data", [b"PK\x03\x04 no zip", zipped({"a.png": picture()})[:-30]], ids=["junk", "cut"])
def test_an_archive_that_is_none(client: TestClient, data: bytes) -> None:
    assert "mine.zip cannot be unpacked" in imported(client, {"mine.zip": data})


def test_names_in_zips_of_chinese_windows_are_read(client: TestClient, studio: Studio) -> None:
    data = zipped({"xxxx.png": picture(), "xxxx.txt": b"a cat"}).replace(b"xxxx", "猫咪".encode("gb18030"))
    imported(client, {"a.zip": data})
    assert [row.place for row in dataset_of(studio.workspace, "mine").version().index.all_rows()] == ["猫咪.png"]


def test_a_full_disk_before_and_during_an_upload(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_dataset(client, files={"a.png": picture()})
    monkeypatch.setattr(uploads, "RESERVE", 2**62)
    before = client.put(f"/data/{name}/files/b.png", content=picture())
    monkeypatch.undo()

    def full(descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uploads, "_write_all", full)
    during = client.put(f"/data/{name}/files/a.png", content=picture("blue"))
    assert (before.status_code, during.status_code) == (507, 507)
    assert "The disk has no room" in before.json()["error"]
    assert "The disk is full: a.png was not saved" in during.json()["error"]
    folder = dataset_of(studio.workspace, name).files
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    assert (folder / "a.png").read_bytes() == picture()


def test_an_upload_that_breaks_off_leaves_nothing(client: TestClient, studio: Studio) -> None:
    name = new_dataset(client)
    answer = client.put(f"/data/{name}/files/a.png", content=b"half", headers={"content-length": "8"})
    assert "broke off after 4 of 8 bytes" in answer.json()["error"]
    assert not list(dataset_of(studio.workspace, name).files.iterdir())


def test_an_upload_needs_the_token_of_the_page(client: TestClient, studio: Studio) -> None:
    name = new_dataset(client)
    del client.headers["x-csrf-token"]
    assert client.put(f"/data/{name}/files/a.png", content=b"x").status_code == 403
    assert not list(dataset_of(studio.workspace, name).files.iterdir())


def test_an_import_that_was_killed_says_so_and_can_be_repeated(client: TestClient, studio: Studio) -> None:
    name = new_dataset(client, files={"cat.png": picture(), "cat.txt": b"a cat"})
    dataset = dataset_of(studio.workspace, name)
    read_rows(client, name)
    (dataset.folder / "outcome.json").unlink()
    page = client.get(f"/data/{name}", headers={"accept": "text/html"}).text
    assert "Reading the rows ended before it was done" in page
    assert "Reading the rows ended" not in read_rows(client, name)
