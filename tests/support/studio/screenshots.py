"""Pictures of pages in both languages, light and dark, on a desktop and a phone.

python -m tests.support.studio.screenshots WORKSPACE OUT [PATH...]
"""

from __future__ import annotations

import io
import os
import sys
from itertools import product
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tests.support.studio.server import StudioServer

PAGES = ("", "data", "train", "runs", "evaluate", "chat", "serve")
SIZES = ((1280, 860), (390, 844))  # a desktop's and a phone's window in pixels
CHECKED = 120_000  # ms until a planned run is checked
VARIANTS = tuple(product(("en", "zh"), ("light", "dark"), SIZES))


def shoot(browser: Browser, server: StudioServer, out: Path, paths: list[str]) -> None:
    """One PNG a page and variant: OUT/PAGE-LANGUAGE-COLOURS-WIDTH.png."""
    for language, theme, (width, height) in VARIANTS:
        context = browser.new_context(viewport={"width": width, "height": height}, locale=language)
        settings = {"lensmith_theme": theme, "lensmith_language": language}
        context.add_cookies([{"name": name, "value": value, "url": server.url} for name, value in settings.items()])
        page = context.new_page()
        page.goto(server.link)
        for path in paths:
            page.goto(f"{server.url}/{path}")
            if path.startswith("train"):
                page.locator(".verdict").first.wait_for(timeout=CHECKED)
            page.wait_for_timeout(700)
            name = path.partition("?")[0].replace("/", "-") or "home"
            save(page.screenshot(), out / f"{name}-{language}-{theme}-{width}.png")
        context.close()


def save(png: bytes, path: Path) -> None:
    """As a PNG of at most 256 colours: a third of the size, and no difference that the eye sees."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main(workspace: Path, out: Path, paths: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with StudioServer(workspace) as server, sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        shoot(browser, server, out, paths)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or list(PAGES))
