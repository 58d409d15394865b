"""The studio inside the gateway: `lensmith serve --studio`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.tenants.keys import digest, new_secret, write_keys
from gateway.tenants.limits import Key
from tests.support.gateway.processes import Process, fake_engine, lensmith_serve, until
from tests.support.paths import ROOT

HTML = {"accept": "text/html"}


@pytest.fixture
def engine() -> Iterator[Process]:
    with fake_engine() as process:
        yield process


def test_without_keys_the_printed_link_opens_it_and_the_api_is_as_before(engine: Process, tmp_path: Path) -> None:
    with lensmith_serve("--engine", engine.url, "--studio", str(tmp_path / "w")) as gateway, httpx.Client() as client:
        gateway.wait_until("/v1/models", 200)
        (link,) = until("the link is printed", lambda: re.findall(r"http://\S+/studio/login\?token=\S+", gateway.log()))
        assert client.get(f"{gateway.url}/studio/runs", headers=HTML).status_code == 303
        assert client.get(f"{gateway.url}/studio", headers=HTML).headers["location"] == "studio/"
        page = client.get(link, headers=HTML, follow_redirects=True)
        assert page.status_code == 200
        assert str(page.url) == f"{gateway.url}/studio/"
        deep = client.get(f"{gateway.url}/studio/runs/compare", headers=HTML)
        assert '<base href="../">' in deep.text
        style = re.findall(r'href="(static/studio\.css[^"]*)"', page.text)[0]
        assert client.get(f"{gateway.url}/studio/{style}").headers["content-type"].startswith("text/css")
        assert client.get(f"{gateway.url}/").text == "Lensmith is running\n"
        assert client.get(f"{gateway.url}/static/studio.css").status_code == 404


def test_the_gateway_s_keys_open_it_but_not_those_for_some_models_only(engine: Process, tmp_path: Path) -> None:
    mine, other, file = new_secret(), new_secret(), tmp_path / "keys.json"
    write_keys(file, [Key("me", digest(mine), ""), Key("client", digest(other), "", models=["x"])])
    options = ("--engine", engine.url, "--keys", str(file), "--studio", str(tmp_path / "w"))
    with lensmith_serve(*options) as gateway, httpx.Client(headers=HTML) as client:
        gateway.wait_until("/health", 200)
        assert client.get(f"{gateway.url}/v1/models").status_code == 401
        login = f"{gateway.url}/studio/login"
        assert client.get(login, headers={"host": "api.example.com"}).status_code == 200
        assert client.post(login, data={"secret": other}).status_code == 401
        assert client.get(f"{gateway.url}/studio/runs").status_code == 303
        assert client.post(login, data={"secret": mine}).status_code == 303
        assert client.get(f"{gateway.url}/studio/runs").status_code == 200


def test_without_keys_it_is_refused_where_others_can_reach_it(engine: Process, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lensmith", "serve", "--engine", engine.url, "--host", "0.0.0.0", "--port", "0"]
    refused = subprocess.run(
        [*command, "--studio", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert refused.returncode == 2
    assert "--studio needs --keys FILE" in refused.stderr
