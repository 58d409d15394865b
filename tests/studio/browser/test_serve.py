"""The page Serve in Chromium: a gateway is started, its figures arrive in the charts, and it is stopped."""

from __future__ import annotations

import httpx
from playwright.sync_api import Page, expect

from tests.support.studio.server import StudioServer
from tests.support.studio.tuned_run import tuned_run


def test_a_gateway_is_started_from_the_page_and_its_requests_are_drawn(page: Page, studio_server: StudioServer) -> None:
    tuned_run(studio_server.folder, "words")
    page.goto(f"{studio_server.url}/serve")
    page.get_by_label("Card").fill("t4")
    page.get_by_role("button", name="Check").click()
    expect(page.locator("#verdicts")).to_contain_text("LMDeploy on the T4")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#phase")).to_have_text("Ready", timeout=60_000)
    url = page.locator("#address").inner_text()
    body = {"model": "tuned", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    assert httpx.post(f"{url}/chat/completions", json=body, timeout=60).status_code == 200
    expect(page.locator('[data-figure="requests"]')).to_have_text("1")
    expect(page.locator('[data-chart="requests"] canvas')).to_have_count(1)
    assert url in page.locator('[data-program="python"]').text_content()  # type: ignore[operator]
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("a.gateway .state")).to_have_text("done")
