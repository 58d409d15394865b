"""What is for operators only: at a port of its own when asked, then nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process, fake_engine, lensmith_serve, until
from tests.support.gateway.requests import envelope, keys_command


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, str, str, Process]]:
    """A gateway with keys and a management port, that port's address, a key, and the gateway's engine."""
    file, port = str(tmp_path_factory.mktemp("keys") / "keys.json"), free_port()
    secret = keys_command("add", "a", "--file", file).output.strip()
    with (
        fake_engine() as engine,
        lensmith_serve("--engine", engine.url, "--keys", file, "--management-port", str(port)) as gateway,
    ):
        gateway.wait_until("/ready", 200)
        yield gateway, f"http://127.0.0.1:{port}", secret, engine


def test_what_is_for_operators_is_at_its_own_port_only(split: tuple[Process, str, str, Process]) -> None:
    gateway, inside, secret, _ = split
    key = {"authorization": f"Bearer {secret}"}
    assert "lensmith_requests_running" in httpx.get(inside + "/metrics").text
    assert envelope(httpx.get(gateway.url + "/metrics"), 401)
    assert envelope(httpx.get(gateway.url + "/metrics", headers=key), 404)
    port = inside.rsplit(":", 1)[1]
    pretending = {**key, "host": f"127.0.0.1:{port}", "x-forwarded-port": port}
    assert envelope(httpx.get(gateway.url + "/metrics", headers=pretending), 404)
    assert "/metrics" not in httpx.get(gateway.url + "/openapi.json", headers=key).json()["paths"]
    assert httpx.get(inside + "/health").json() == httpx.get(gateway.url + "/health").json() == {"status": "ok"}


def test_clients_routes_are_not_at_the_management_port(split: tuple[Process, str, str, Process]) -> None:
    _, inside, secret, _ = split
    key = {"authorization": f"Bearer {secret}"}
    for path in ("/v1/models", "/docs", "/openapi.json"):
        assert envelope(httpx.get(inside + path, headers=key), 404)
    assert httpx.get(inside + "/api/tags").status_code == 404
    assert envelope(httpx.post(inside + "/v1/chat/completions", json={}, headers=key), 404)


def test_only_operators_are_told_what_is_the_matter(split: tuple[Process, str, str, Process]) -> None:
    gateway, inside, _, engine = split
    assert httpx.get(gateway.url + "/ready").json() == {"status": "ready"}
    assert httpx.get(inside + "/ready").json()["models"]["fake"]["ready"] is True
    engine.end()
    until("the gateway knows", lambda: httpx.get(inside + "/ready").status_code == 503)
    told = httpx.get(gateway.url + "/ready")
    assert (told.status_code, told.json()) == (503, {"status": "not ready"})
    assert int(told.headers["retry-after"]) >= 1
    assert engine.url in httpx.get(inside + "/ready").json()["reason"]


def test_where_keys_are_asked_for_the_open_probe_tells_no_details(engine: Process, tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    keys_command("add", "a", "--file", file)
    with lensmith_serve("--engine", engine.url, "--keys", file) as gateway:
        gateway.wait_until("/ready", 200)
        assert httpx.get(gateway.url + "/ready").json() == {"status": "ready"}


def test_a_management_port_that_is_taken(engine: Process) -> None:
    with lensmith_serve("--engine", engine.url, "--management-port", str(engine.port)) as gateway:
        assert gateway.process.wait(30) == 1
        assert f"Port {engine.port} on 127.0.0.1 is in use; choose another one with --management-port." in gateway.log()
