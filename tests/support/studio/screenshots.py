"""Pictures of pages in both languages, light and dark, on a desktop and a phone.

python -m tests.support.studio.screenshots WORKSPACE OUT [PATH...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.support.studio.server import StudioServer

PAGES = ("", "data", "train", "runs", "evaluate", "chat", "serve")
WIDTHS = (1280, 390)


def shoot(browser: Browser, server: StudioServer, out: Path, paths: list[str]) -> None:
    """One PNG a page, language, theme and width: OUT/PAGE-LANGUAGE-THEME-WIDTH.png."""
    for language in ("en", "zh"):
        for theme in ("light", "dark"):
            for width in WIDTHS:
                context = browser.new_context(viewport={"width": width, "height": 860}, locale=language)
                context.add_cookies(
                    [
                        {"name": "lensmith_theme", "value": theme, "url": server.url},
                        {"name": "lensmith_language", "value": language, "url": server.url},
                    ]
                )
                page = context.new_page()
                page.goto(server.link)
                for path in paths:
                    page.goto(f"{server.url}/{path}")
                    page.wait_for_timeout(400)
                    name = path.replace("/", "-").replace("?", "-") or "home"
                    page.screenshot(path=out / f"{name}-{language}-{theme}-{width}.png", full_page=True)
                context.close()


def main(workspace: Path, out: Path, paths: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with StudioServer(workspace) as server, sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        shoot(browser, server, out, paths)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or list(PAGES))
