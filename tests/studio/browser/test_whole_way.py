"""From a folder of pictures to a served answer in Chromium, on the demo's model and data; clicks are counted."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from finetune.reporting.html import data_uri
from tests.support.studio.easy_vqa_subset import TRAIN, write_subset
from tests.support.studio.server import StudioServer

MINUTE = 60_000  # ms
ANSWERS = ("red", "green", "blue", "yellow", "black", "gray", "brown", "teal")  # the colours of easy-VQA
MAX_CLICKS = 12  # from the first page to a trained model


def ask(url: str, picture: Path) -> str:
    """What the gateway at this address answers about a picture."""
    content = [
        {"type": "image_url", "image_url": {"url": data_uri(picture.read_bytes(), "image/png")}},
        {"type": "text", "text": "what color is the shape?"},
    ]
    with httpx.Client(base_url=url, timeout=60) as client:
        model = client.get("models").raise_for_status().json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
        answer = client.post("chat/completions", json=body).raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


class Clicks:
    """Clicks as a person makes them, counted."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, target: Locator) -> None:
        target.click()
        self.count += 1


@pytest.mark.timeout(600)
def test_from_a_folder_of_pictures_to_a_served_answer(page: Page, studio_server: StudioServer, tmp_path: Path) -> None:
    click = Clicks()
    folder = write_subset(tmp_path / "easy-vqa")

    click(page.get_by_role("navigation").get_by_role("link", name="Data"))
    with page.expect_file_chooser() as chooser:
        click(page.get_by_text("Choose a folder"))
    chooser.value.set_files(folder)
    expect(page.get_by_role("heading", name="easy-vqa")).to_be_visible(timeout=MINUTE)
    expect(page.locator(".facts")).to_contain_text(f"{TRAIN}", timeout=MINUTE)

    click(page.get_by_role("button", name="Train on it"))
    expect(page.locator("#yaml")).to_contain_text("easy-vqa")
    click(page.get_by_role("button", name="Start training"))
    expect(page).to_have_url(f"{studio_server.url}/runs/easy-vqa-quick")
    expect(page.locator('[data-chart="loss"] canvas')).to_be_visible(timeout=2 * MINUTE)
    expect(page.locator("#live .state.done")).to_be_visible(timeout=4 * MINUTE)
    assert click.count <= MAX_CLICKS
    expect(page.locator(".sample .right").first).to_be_visible()
    assert page.locator(".sample img").first.evaluate("picture => picture.naturalWidth") == 64

    click(page.get_by_role("button", name="Evaluate it"))
    page.get_by_label("Rows").fill("24")
    click(page.get_by_role("button", name="Start the evaluation"))
    expect(page.get_by_role("heading", name="Scores")).to_be_visible(timeout=2 * MINUTE)

    click(page.get_by_role("navigation").get_by_role("link", name="Serve"))
    click(page.get_by_role("button", name="Export", exact=True))
    expect(page.locator("#jobs .state.done").first).to_be_visible(timeout=MINUTE)
    page.reload()
    gateway = page.get_by_role("region", name="Gateway")
    gateway.locator("select[name=source]").select_option(label="easy-vqa-quick")
    click(gateway.get_by_role("button", name="Start", exact=True))
    expect(page.locator("#phase")).to_have_text("Ready", timeout=2 * MINUTE)
    assert ask(page.locator("#address").inner_text(), folder / "images" / "test" / "0.png") in ANSWERS
    click(page.get_by_role("button", name="Stop"))
    expect(page.locator(".state.done").first).to_be_visible(timeout=MINUTE)
