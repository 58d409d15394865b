"""The frame of all pages and the page Runs in a real Chromium: prefix, languages, colours, keyboard, live curves."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from studio.jobs.store import Jobs
from studio.workspace.folder import Workspace
from tests.support.studio.jobs import finished, printed
from tests.support.studio.nginx import nginx
from tests.support.studio.run_folders import add_checkpoint, make_run, train_job
from tests.support.studio.server import StudioServer

PAGES = ("", "data", "train", "runs", "evaluate", "chat", "serve")


@pytest.fixture(scope="module")
def workspace(studio_server: StudioServer) -> Workspace:
    return Workspace(studio_server.folder)


@pytest.fixture(scope="module")
def jobs(studio_server: StudioServer) -> Jobs:
    return Jobs(studio_server.folder / "jobs")


@pytest.fixture
def prefixed(studio_server: StudioServer, tmp_path: Path) -> Iterator[str]:
    process, address = nginx(tmp_path, studio_server.url)
    with process:
        yield address


def go(page: Page, path: str) -> None:
    """Open a page of the studio that the page shows."""
    page.goto(re.sub(r"(http://[^/]+/).*", rf"\1{path}", page.url))


LOG = """
import json, sys, time
from pathlib import Path
log = Path(sys.argv[1])
for step in range(2, 400, 2):
    record = {"current_steps": step, "total_steps": 400, "loss": 4.0 / step, "lr": 1e-4, "elapsed_time": "0:00:01"}
    with log.open("a") as file:
        file.write(json.dumps(record) + "\\n")
    print("up", step, "x" * 6000, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_behind_a_stripped_prefix_everything_works_and_nothing_is_asked_of_elsewhere(
    browser: Browser, studio_server: StudioServer, workspace: Workspace, prefixed: str
) -> None:
    make_run(workspace, "prefixed")
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    page.goto(studio_server.link.replace(f"{studio_server.url}/", prefixed))
    expect(page).to_have_url(prefixed)
    for name in PAGES[1:]:
        page.locator(f'nav a[href="{name}"]').click()
        expect(page.locator(f'nav a[href="{name}"]')).to_have_attribute("aria-current", "page")
        expect(page).to_have_url(prefixed + name)
    page.goto(f"{prefixed}runs")
    page.get_by_role("link", name="prefixed", exact=True).click()
    expect(page.locator('[data-chart="loss"] canvas')).to_be_visible()
    page.get_by_label("Notes").fill("written below a prefix")
    expect(page.locator("#saved")).to_have_text("Saved.")
    assert not failed
    origin = prefixed.split("/tools")[0]
    assert not [url for url in asked if not url.startswith((origin, "data:", "blob:"))]
    assert not [url for url in asked if url.startswith(origin) and not url.startswith(prefixed)]
    context.close()


def test_the_browser_may_be_closed_and_another_shows_the_same(
    browser: Browser, studio_server: StudioServer, workspace: Workspace, jobs: Jobs
) -> None:
    """More than 1 MiB of output while nobody looks, and the studio is restarted in the middle."""
    folder = make_run(workspace, "long", steps=0)
    job = train_job(jobs, folder, LOG, str(folder / "output" / "trainer_log.jsonl"), "0.01")
    printed(job, "up 4")
    first = browser.new_context()
    page = first.new_page()
    page.goto(studio_server.link)
    page.goto(f"{studio_server.url}/runs/long")
    expect(page.locator(".state.running").first).to_be_visible()
    first.close()
    job = finished(jobs, job)
    assert (job.state, job.exit_code) == ("done", 0)
    assert job.log_path.stat().st_size > 1 << 20
    second = browser.new_context()
    page = second.new_page()
    page.goto(studio_server.link)
    page.goto(f"{studio_server.url}/runs/long")
    expect(page.locator(".state.done").first).to_be_visible()
    expect(page.locator("#live")).to_contain_text("398 / 400")
    expect(page.locator("#log")).to_contain_text("up 398")
    expect(page.locator('[data-chart="loss"] canvas')).to_be_visible()
    second.close()


def test_a_run_is_watched_stopped_and_resumed_by_its_buttons(page: Page, workspace: Workspace, jobs: Jobs) -> None:
    folder = make_run(workspace, "watched", steps=0)
    job = train_job(jobs, folder, LOG, str(folder / "output" / "trainer_log.jsonl"), "0.05")
    printed(job, "up 4")
    go(page, "runs/watched")
    expect(page.locator('[data-chart="loss"] canvas')).to_be_visible()
    before = page.locator("#live dd").first.inner_text()
    expect(page.locator("#live dd").first).not_to_have_text(before)
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator(".state.stopped").first).to_be_visible()
    add_checkpoint(folder, 4)
    page.reload()
    page.get_by_role("button", name="Resume from step 4").click()
    expect(page.locator(".state.running").first).to_be_visible()
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator(".state.stopped").first).to_be_visible()


def test_the_language_is_switched_live_and_what_was_typed_stays(page: Page, workspace: Workspace) -> None:
    make_run(workspace, "bilingual")
    go(page, "runs/bilingual")
    page.locator("textarea[name=notes]").evaluate("field => field.value = 'half a thought'")
    page.get_by_label("Language").select_option("zh")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.get_by_role("heading", name="备注")).to_be_visible()
    expect(page.locator("textarea[name=notes]")).to_have_value("half a thought")
    page.locator("#language").select_option("en")
    expect(page.get_by_role("heading", name="Notes")).to_be_visible()


def test_colours_follow_the_system_and_the_switch(page: Page) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page.emulate_media(color_scheme="light")
    light = background()
    page.emulate_media(color_scheme="dark")
    dark = background()
    assert light != dark
    page.get_by_label("Colours").select_option("light")
    assert background() == light
    page.reload()
    assert background() == light
    page.emulate_media(color_scheme="light")
    page.get_by_label("Colours").select_option("dark")
    assert background() == dark


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# Each piece of text with the first opaque background behind it.
CONTRASTS = """() => [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility() &&
  [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())).map((one) => {
    let behind = one, colour = 'rgba(0, 0, 0, 0)';
    while (behind && /rgba\\(.*, 0\\)|transparent|color\\(|\\/ /.test(colour)) {
      colour = getComputedStyle(behind).backgroundColor;
      behind = behind.parentElement;
    }
    return [one.outerHTML.slice(0, 90), getComputedStyle(one).color, colour];
  })"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(page: Page, workspace: Workspace, jobs: Jobs, theme: str) -> None:
    name = f"contrast-{theme}"
    folder = make_run(workspace, name)
    finished(jobs, train_job(jobs, folder, "exit(1)"))
    page.get_by_label("Colours").select_option(theme)
    for path in ("", "runs", f"runs/{name}"):
        go(page, path)
        for text, front, back in page.evaluate(CONTRASTS):
            if not front.startswith("rgb") or not back.startswith("rgb"):
                continue
            lighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (path, text, front, back)


def test_all_is_reached_by_the_keyboard_and_has_a_name(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    for name in PAGES:
        go(page, name)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a[href]')]
            .filter((one) => one.checkVisibility() && !(one.labels?.length || one.getAttribute('aria-label')
              || one.getAttribute('aria-labelledby') || one.textContent.trim() || one.title))
            .map((one) => one.outerHTML.slice(0, 120))"""
        )
        assert not nameless, name
        assert page.locator("h1").count() == 1, name


@pytest.mark.parametrize("width", [360, 390, 768])
def test_nothing_is_wider_than_a_phone(page: Page, workspace: Workspace, width: int) -> None:
    name = f"narrow-{width}"
    make_run(workspace, name, a_very_long_key_that_nobody_would_give_to_anything_at_all="x" * 200)
    page.set_viewport_size({"width": width, "height": 800})
    for path in (*PAGES, f"runs/{name}", f"runs/compare?run={name}"):
        go(page, path)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, (path, wide)


def test_a_hanging_event_stream_does_not_keep_the_studio_from_closing(browser: Browser, tmp_path: Path) -> None:
    with StudioServer(tmp_path / "w") as server:
        _close_while_followed(browser, server, tmp_path)


def _close_while_followed(browser: Browser, server: StudioServer, tmp_path: Path) -> None:
    folder = make_run(Workspace(server.folder), "open", steps=4)
    jobs = Jobs(server.folder / "jobs")
    job = train_job(jobs, folder, "import time; print('up', flush=True); time.sleep(60)")
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.link)
    page.goto(f"{server.url}/runs/open")
    expect(page.locator("#log")).to_contain_text("up")
    begun = time.monotonic()
    server.end()
    assert time.monotonic() - begun < 10
    with StudioServer(tmp_path / "w") as again, closing(again.client()) as client:
        assert 'class="state running"' in client.get("runs").text  # the job was found again
        client.post("runs/open/stop")
        assert finished(jobs, job).state == "stopped"
    context.close()
