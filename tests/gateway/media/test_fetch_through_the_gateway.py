"""The gateway with a host that images may be fetched from: engines only ever see `data:` URIs."""

from __future__ import annotations

import base64
import http.server
import json
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from modelfiles.hardware.python_child import free_port
from tests.support.gateway.images import image_file
from tests.support.gateway.processes import Process, until
from tests.support.gateway.requests import CHAT, envelope
from tests.support.paths import SUPPORT

FILES = {"/cat": image_file("JPEG"), "/large": image_file("PNG", (500, 500)), "/page": b"<html>"}


class Server(http.server.BaseHTTPRequestHandler):
    """Serves FILES; at /slow it says nothing until its client goes."""

    waiting = 0

    def do_GET(self) -> None:
        if self.path == "/slow":
            Server.waiting += 1
            self.connection.recv(1)
            Server.waiting -= 1
            return
        found = FILES.get(self.path)
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """A web server's port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def fetching(engine: Process, site: int) -> Iterator[Process]:
    """A gateway that fetches from images.test and holds at most 400,000 bytes for a request."""
    port = free_port()
    options = ["--engine", engine.url, "--image-hosts", f"images.test:{site}", "--max-body-bytes", "400000"]
    script = str(SUPPORT / "gateway" / "serve_fetching.py")
    with Process([sys.executable, script, "serve", "--port", str(port), *options], port) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway


def body(*urls: str) -> dict:
    parts = [{"type": "text", "text": "echo"}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    return {"model": "fake", "messages": [{"role": "user", "content": parts}]}


def test_the_engine_sees_the_file_and_no_url(fetching: Process, site: int) -> None:
    inline = "data:image/jpeg;base64," + base64.b64encode(FILES["/cat"]).decode()
    fetched = body(f"http://images.test:{site}/cat", inline, f"http://images.test:{site}/cat")
    before = fetching.metric("lensmith_images_per_request_sum")
    answer = httpx.post(fetching.url + CHAT, json=fetched)
    assert answer.status_code == 200, answer.text
    seen = json.loads(answer.json()["choices"][0]["message"]["content"])["body"]["messages"]
    assert seen == body(inline, inline, inline)["messages"]
    assert fetching.metric("lensmith_images_per_request_sum") == before + 3
    assert fetching.metric("lensmith_image_fetch_seconds_count") > 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://images.test:{site}/page", "is not a PNG, JPEG, WebP or GIF file"),
        ("http://images.test:{site}/none", "its server answered HTTP 404"),
        ("http://127.0.0.1:{site}/cat", "at a host that this server does not fetch"),
        ("http://images.test/cat", "at a host that this server does not fetch"),
        ("file:///etc/passwd", "is neither a data: URI nor"),
        ("/etc/passwd", "is neither a data: URI nor"),
        ("cat.png", "is neither a data: URI nor"),
    ],
)
def test_an_image_that_cannot_be_had_is_named(fetching: Process, site: int, url: str, says: str) -> None:
    error = envelope(httpx.post(fetching.url + CHAT, json=body(url.format(site=site))), 400)
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "invalid_image")
    assert says in error["message"]


def test_fetched_images_count_like_sent_ones(fetching: Process, site: int) -> None:
    large = f"http://images.test:{site}/large"
    assert len(FILES["/large"]) < 400_000 * 3 / 4 < 2 * len(FILES["/large"])
    assert httpx.post(fetching.url + CHAT, json=body(large)).status_code == 200
    assert envelope(httpx.post(fetching.url + CHAT, json=body(large, large)), 413)["code"] == "request_too_large"
    too_many = httpx.post(fetching.url + CHAT, json=body(*[f"http://images.test:{site}/none"] * 17))
    assert envelope(too_many, 400)["code"] == "too_many_images"


def test_a_client_that_goes_ends_the_download(fetching: Process, site: int) -> None:
    gone = fetching.metric("lensmith_requests_total", status="499")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(fetching.url + CHAT, json=body(f"http://images.test:{site}/slow"), timeout=0.5)
    until("the download ended", lambda: Server.waiting == 0)
    until("it is counted", lambda: fetching.metric("lensmith_requests_total", status="499") == gone + 1)
