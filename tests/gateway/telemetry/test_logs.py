"""The log: readable on a terminal, JSON everywhere else (a request's own line: test_metrics.py)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from typing import Any

import httpx

from tests.support.gateway.processes import Process, free_port, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask, picture
from tests.support.gateway.supervised import serve_fake
from tests.support.paths import ROOT


def test_a_terminal_shows_readable_lines(engine: Process) -> None:
    ours, its = os.openpty()
    port = free_port()
    argv = [sys.executable, "-m", "lensmith", "serve", "--engine", engine.url, "--port", str(port)]
    process = subprocess.Popen(argv, stderr=its, cwd=ROOT)
    os.close(its)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                shown.append(data)
        except OSError:  # how a terminal ends
            pass

    reader = threading.Thread(target=read)
    reader.start()
    url = f"http://127.0.0.1:{port}"
    try:
        until("the gateway listens", lambda: b"Listening on" in b"".join(shown))
        content = [{"type": "text", "text": "count 3"}, {"type": "image_url", "image_url": {"url": picture()}}]
        body = {"model": "fake", "messages": [{"role": "user", "content": content}]}
        until("it is ready", lambda: httpx.get(url + "/ready").status_code == 200)
        assert httpx.post(url + CHAT, json=body).status_code == 200
        assert httpx.post(url + CHAT, json={**body, "stream": True}).status_code == 200
        body = {"model": "fake", "messages": ask("fault status 429")}
        assert httpx.post(url + CHAT, json=body, headers={"x-request-id": "mine-1"}).status_code == 429
    finally:
        process.terminate()
        assert process.wait(30) == 0
        reader.join(30)
        os.close(ours)
    lines = [line for line in b"".join(shown).decode().splitlines() if "/v1/chat" in line]
    answered, streamed, refused = (re.sub(r"\d\.\d\d s", "T", line) for line in lines)
    assert re.fullmatch(r"\d\d:\d\d:\d\d 200 /v1/chat/completions fake, 1 image, 7 \+ 3 tokens, T", answered)
    assert streamed.endswith("fake, 1 image, 7 + 3 tokens, first after T, T")
    assert refused.endswith("429 /v1/chat/completions fake, T, engine_refused (mine-1)")


def messages(gateway: Process) -> list[dict[str, Any]]:
    """Those of the lines that are no request's; every line must be JSON."""
    lines = [json.loads(line) for line in gateway.raw_log().splitlines()]
    return [line for line in lines if "message" in line]


def test_every_line_is_json_where_no_terminal_is(engine: Process) -> None:
    options = ("--host", "0.0.0.0", "--management-port", str(free_port()), "--workers", "2")
    with lensmith_serve("--engine", engine.url, *options) as gateway:
        gateway.wait_until("/ready", 200)
        until("both workers are told of", lambda: gateway.raw_log().count("Gateway process") == 2)
        assert httpx.post(gateway.url + CHAT, json={"model": "fake", "messages": ask("count 3")}).status_code == 200
        gateway.end()
        said = messages(gateway)
    for line in said:
        assert set(line) == {"time", "level", "source", "message"}
        assert line["source"] == "lensmith"
    assert next(line["level"] for line in said if "Whoever reaches this port" in line["message"]) == "warning"
    assert sum("Listening on http" in line["message"] for line in said) == 1


def test_lines_of_an_engine_are_json_that_names_it() -> None:
    with serve_fake() as gateway:
        gateway.wait_until("/ready", 200)
        said = [(line["source"], line["message"]) for line in messages(gateway)]
    assert ("fake", "fake engine: loading /nowhere") in said
    assert any(source == "lensmith" and "The fake engine is ready after" in message for source, message in said)
