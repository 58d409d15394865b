"""The page Data in a real browser: from files that are dropped to rows that can be trained on."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from studio.datasets.store import Dataset
from tests.support.studio.datasets import lines, picture
from tests.support.studio.server import StudioServer

EVIL = "<img src=x onerror=\"document.title='owned'\"> a red square"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """The folder with these files."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def choose(page: Page, server: StudioServer, kind: str, path: Path | list[Path]) -> None:
    """Give files or a folder to the page as a person would."""
    page.goto(f"{server.url}/data")
    with page.expect_file_chooser() as chooser:
        page.get_by_text({"files": "Choose files", "folder": "Choose a folder"}[kind]).click()
    chooser.value.set_files(path)


def test_a_folder_of_pictures_with_captions_is_ready_in_two_clicks(
    page: Page, studio_server: StudioServer, tmp_path: Path
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    files = {"1.png": picture("red"), "1.txt": EVIL.encode(), "2.png": picture("blue"), "2.txt": b"a blue square"}
    choose(page, studio_server, "folder", write(tmp_path / "my shapes", files | {"3.png": picture("green")}))
    expect(page.get_by_role("heading", name="my_shapes")).to_be_visible()
    expect(page.get_by_text("a blue square").first).to_be_visible()
    expect(page.get_by_text(EVIL).first).to_be_visible()
    assert "owned" not in page.title()
    assert page.locator(".thumb img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 40
    assert {url for url in asked if not url.startswith((studio_server.url, "data:", "blob:"))} == set()
    # The picture without a caption comes first and is written by hand.
    page.locator(".thumb").first.click()
    page.get_by_label("Answer, which is learnt").fill("a green square")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("button", name="Save as version 2").click()
    expect(page.locator(".facts")).to_contain_text("3")
    expect(page.get_by_role("button", name="Save as version")).to_have_count(0)
    dataset = Dataset(studio_server.folder / "datasets" / "my_shapes")
    assert [version.trainable for version in dataset.versions()] == [3, 2]


def test_columns_are_mapped_by_clicks(page: Page, studio_server: StudioServer, tmp_path: Path) -> None:
    folder = write(tmp_path, {"table.csv": b"pic,said,other\na.png,red,7\n", "a.png": picture()})
    choose(page, studio_server, "files", [folder / "table.csv", folder / "a.png"])
    expect(page.get_by_text("Which column is what?")).to_be_visible()
    answers = page.get_by_role("group", name="Answer, which is learnt")
    answers.get_by_label("other").check()
    question = page.get_by_role("group", name="Question")
    question.get_by_label("other").check()
    expect(answers.get_by_label("none")).to_be_checked()  # a column has one use
    question.get_by_label("none").check()
    answers.get_by_label("said").check()
    page.get_by_role("button", name="Read the rows").click()
    expect(page.locator(".answer")).to_have_text("red")
    expect(page.locator(".question")).to_have_text("Describe this image.")


def test_pages_filters_and_marks(page: Page, studio_server: StudioServer, tmp_path: Path) -> None:
    rows = [{"question": f"Number {n}?", "answer": f"it is {n}"} for n in range(60)]
    write(tmp_path, {"many.jsonl": lines(*rows)})
    choose(page, studio_server, "files", [tmp_path / "many.jsonl"])
    expect(page.get_by_text("60 rows · page 1 of 3")).to_be_visible()
    page.get_by_role("navigation", name="Pages").get_by_text("3").click()
    expect(page.get_by_text("60 rows · page 3 of 3")).to_be_visible()
    page.reload()
    expect(page.get_by_text("it is 59")).to_be_visible()
    page.get_by_label("Search in the texts").fill("it is 5")
    expect(page.get_by_text("11 rows · page 1 of 1")).to_be_visible()
    page.get_by_label("All on this page").check()
    page.get_by_role("button", name="Leave out").first.click()
    expect(page.locator(".badge", has_text="left out")).to_have_count(11)
    expect(page.get_by_text("11 rows differ from version 1")).to_be_visible()
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_text("not saved yet")).to_have_count(0)


def test_a_refusal_is_a_sentence_and_keeps_what_was_typed(
    page: Page, studio_server: StudioServer, tmp_path: Path
) -> None:
    write(tmp_path, {"one.jsonl": lines({"question": "<image>?", "answer": "x", "image": "a.png"}), "a.png": picture()})
    choose(page, studio_server, "files", [tmp_path / "one.jsonl", tmp_path / "a.png"])
    page.locator(".thumb").first.click()
    page.get_by_label("Question").fill("no picture <image> <image>")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("the row has 1 image")
    expect(page.get_by_label("Question")).to_have_value("no picture <image> <image>")
