"""A page of another origin in a real Chromium calls the API: preflight, key, answer, stream, errors."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway.processes import Process, lensmith_serve
from tests.support.gateway.requests import picture

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs: apt-get install chromium")

# What the page does with the API: [url, key, body] -> what a script in it sees.
CALL = """async ([url, key, body]) => {
  try {
    const answer = await fetch(url + "/v1/chat/completions", {
      method: "POST", body: JSON.stringify(body),
      headers: {"content-type": "application/json", "authorization": "Bearer " + key, "x-stainless-lang": "js"},
    });
    return {status: answer.status, id: answer.headers.get("x-request-id"),
            wait: answer.headers.get("retry-after"), text: await answer.text()};
  } catch (error) { return {blocked: String(error)}; }
}"""


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>somebody's page</title>")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(origin: str) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.goto(origin)
        yield opened
        browser.close()


@pytest.fixture(scope="module")
def keyed(engine: Process, origin: str, key_file: Path, add: Callable[..., str]) -> Iterator[tuple[Process, str]]:
    secret = add("page")
    options = ("--engine", engine.url, "--keys", str(key_file), "--cors-origins", origin)
    with lensmith_serve(*options) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway, secret


def body(text: str, **fields: object) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


def test_a_page_of_an_allowed_origin_asks_streams_and_sends_images(page: Any, keyed: tuple[Process, str]) -> None:
    gateway, secret = keyed
    answer = page.evaluate(CALL, [gateway.url, secret, body("count 3")])
    assert (answer["status"], "0 1 2 " in answer["text"]) == (200, True)
    assert answer["id"]
    stream = page.evaluate(CALL, [gateway.url, secret, body("count 3", stream=True)])
    assert stream["text"].endswith("data: [DONE]\n\n")
    uri = picture()
    content = [{"type": "text", "text": "echo"}, {"type": "image_url", "image_url": {"url": uri}}]
    seen = page.evaluate(CALL, [gateway.url, secret, {**body(""), "messages": [{"role": "user", "content": content}]}])
    assert uri in seen["text"]


def test_a_page_can_read_a_refusal(page: Any, keyed: tuple[Process, str]) -> None:
    gateway, secret = keyed
    refused = page.evaluate(CALL, [gateway.url, "wrong", body("count 3")])
    assert (refused["status"], "invalid_api_key" in refused["text"]) == (401, True)
    limited = page.evaluate(CALL, [gateway.url, secret, body("fault status 429")])
    assert (limited["status"], limited["wait"]) == (429, "7")


def test_other_origins_and_a_gateway_without_the_option_are_closed_to_pages(
    page: Any, keyed: tuple[Process, str], gateway: Process, origin: str
) -> None:
    assert "blocked" in page.evaluate(CALL, [gateway.url, "x", body("count 3")])
    page.goto(origin.replace("127.0.0.1", "localhost"))  # another origin: the name is part of it
    assert "blocked" in page.evaluate(CALL, [keyed[0].url, keyed[1], body("count 3")])
    page.goto(origin)
