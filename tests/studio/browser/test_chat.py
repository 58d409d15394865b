"""The chat page in Chromium: a run is loaded, a picture pasted, both sides answer, and nothing that they say runs."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.support.studio.server import StudioServer
from tests.support.studio.tuned_run import WORD, tuned_run

PASTE = """async (type) => {
  const canvas = new OffscreenCanvas(64, 48);
  const context = canvas.getContext("2d");
  context.fillStyle = "red";
  context.fillRect(8, 8, 30, 30);
  const file = new File([await canvas.convertToBlob({ type: "image/png" })], "red.png", { type: "image/png" });
  const data = new DataTransfer();
  data.items.add(file);
  const event = type === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true });
  document.getElementById("question").dispatchEvent(event);
}"""


def test_base_and_tuned_answer_side_by_side_about_pasted_pictures(page: Page, studio_server: StudioServer) -> None:
    tuned_run(studio_server.folder, "words")
    page.goto(f"{studio_server.url}/chat")
    page.get_by_label("Who shall answer?").select_option("run:words")
    page.get_by_role("button", name="Load it").click()
    expect(page.locator("#phase")).to_have_text("Ready", timeout=60_000)
    page.evaluate(PASTE, "paste")
    page.evaluate(PASTE, "drop")
    expect(page.locator(".pictures img")).to_have_count(2)
    page.get_by_role("button", name="Remove picture 2").click()
    page.get_by_label("Most tokens", exact=False).evaluate("field => { field.value = 8 }")
    question = page.get_by_label("Question", exact=True)
    question.fill("<img src=x onerror=alert(1)> What is this?")
    question.press("Enter")
    tuned, base = (page.locator(f'[data-side="{side}"]') for side in ("tuned", "base"))
    expect(tuned.locator(".meta")).to_contain_text("8 tokens", timeout=60_000)
    expect(tuned.locator(".answer .text")).to_have_text(" ".join([WORD] * 8))
    expect(tuned.locator(".maker")).to_contain_text("shapes-vl + adapter")
    expect(base.locator(".maker")).to_have_text("shapes-vl, no adapter")
    expect(base.locator(".answer .text")).not_to_contain_text(WORD)
    expect(base.locator(".user img")).to_have_count(1)
    expect(base.locator(".user .text")).to_contain_text("<img src=x")
    page.reload()  # the studio has kept what was said
    expect(tuned.locator(".answer .text")).to_have_text(" ".join([WORD] * 8))
    expect(tuned.locator(".meta")).to_contain_text("8 tokens")
    expect(base.locator(".user img")).to_have_count(1)
    page.get_by_role("button", name="New conversation").click()
    expect(base.locator(".user")).to_have_count(0)
    page.get_by_role("button", name="Unload").click()
    expect(page.get_by_role("button", name="Load it")).to_be_visible()
