"""What browsers, probes and people meet: HEAD, the pages, CORS, keys in other headers, paths that are nearly right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.gateway.processes import Process, lensmith_serve
from tests.support.gateway.requests import CHAT, ask, envelope

ORIGIN = "http://localhost:5173"


@pytest.fixture(scope="module")
def guarded(engine: Process, key_file: Path, add: Callable[..., str]) -> Iterator[tuple[Process, str]]:
    """A gateway that asks for keys and lets the pages of one origin call it."""
    secret = add("first")
    with lensmith_serve("--engine", engine.url, "--keys", str(key_file), "--cors-origins", ORIGIN) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway, secret


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/fake", "/api/tags", "/api/version", "/docs"],
)
def test_head_is_answered_wherever_get_is(post: httpx.Client, path: str) -> None:
    head, got = post.head(path), post.get(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["x-request-id"]


def test_head_of_what_is_only_posted_to(post: httpx.Client) -> None:
    assert post.head(CHAT).status_code == 405
    assert post.head("/nowhere").status_code == 404


def test_the_front_page_says_what_this_is(post: httpx.Client) -> None:
    page = post.get("/", headers={"accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<code>fake</code>" in page.text
    assert 'href="docs"' in page.text
    assert post.get("/").text == "Lensmith is running\n"


def test_the_documentation_needs_nothing_from_elsewhere(post: httpx.Client) -> None:
    page = post.get("/docs").text
    assert "POST /v1/chat/completions" in page
    assert "number from 0 to 2" in page
    assert "://" not in page


def test_the_front_page_lists_no_models_where_keys_are_asked_for(guarded: tuple[Process, str]) -> None:
    gateway, _ = guarded
    page = httpx.get(gateway.url, headers={"accept": "text/html"})
    assert page.status_code == 200
    assert "fake" not in page.text
    envelope(httpx.get(gateway.url + "/docs"), 401)


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
def test_a_key_may_come_in_other_clients_headers(guarded: tuple[Process, str], name: str) -> None:
    gateway, secret = guarded
    assert httpx.get(gateway.url + "/v1/models", headers={name: secret}).status_code == 200
    assert envelope(httpx.get(gateway.url + "/v1/models", headers={name: "wrong"}), 401)
    both = {name: secret, "authorization": "Bearer wrong"}
    assert envelope(httpx.get(gateway.url + "/v1/models", headers=both), 401)


def preflight(gateway: Process, origin: str) -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": "POST"}
    headers["access-control-request-headers"] = "content-type,authorization"
    return httpx.options(gateway.url + CHAT, headers=headers)


def test_a_page_of_an_allowed_origin_may_call(guarded: tuple[Process, str]) -> None:
    gateway, secret = guarded
    asked = preflight(gateway, ORIGIN)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in asked.headers["access-control-allow-headers"]
    headers = {"origin": ORIGIN, "authorization": f"Bearer {secret}"}
    answer = httpx.post(gateway.url + CHAT, json={"model": "fake", "messages": ask("hi")}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    refused = httpx.post(gateway.url + CHAT, json={}, headers={"origin": ORIGIN})
    assert envelope(refused, 401)
    assert refused.headers["access-control-allow-origin"] == ORIGIN


def test_other_pages_may_not(guarded: tuple[Process, str], gateway: Process) -> None:
    with_a_list, secret = guarded
    assert preflight(with_a_list, "https://other.example").status_code == 400
    headers = {"origin": "https://other.example", "authorization": f"Bearer {secret}"}
    answer = httpx.get(with_a_list.url + "/v1/models", headers=headers)
    assert "access-control-allow-origin" not in answer.headers
    assert preflight(gateway, ORIGIN).status_code == 405, "off by default"
    assert "--cors-origins" in preflight(gateway, ORIGIN).json()["error"]["message"]


def test_an_origin_is_scheme_and_host(engine: Process) -> None:
    with lensmith_serve("--engine", engine.url, "--cors-origins", "https://a.example/path") as gateway:
        assert gateway.process.wait(30) == 2
        assert "must be a list of origins" in gateway.log()


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/v1/api/chat", "/api/chat"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/metrics", "/metrics"),
    ],
)
def test_a_path_that_is_nearly_right_is_put_right(gateway: Process, path: str, right: str) -> None:
    error = envelope(httpx.post(gateway.url + path, json={}), 404)
    assert f"use {right}." in error["message"]


def test_a_list_of_models_with_a_slash_behind_it_is_put_right(post: httpx.Client) -> None:
    assert "use /v1/models." in envelope(post.get("/v1/models/"), 404)["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/speech", "/v1/files", "/v1/batches", "/embeddings"])
def test_what_is_not_served_is_named(post: httpx.Client, path: str) -> None:
    assert "not served here" in envelope(post.post(path, json={}), 404)["message"]


@pytest.mark.parametrize("path", ["/api/embed", "/api/pull", "/api/create", "/api/blobs/sha256:0", "/api/delete"])
def test_what_ollama_has_beside_it_is_refused_in_its_shape(post: httpx.Client, path: str) -> None:
    answer = post.post(path, json={"model": "fake"})
    assert answer.status_code == 404
    assert "not served here" in answer.json()["error"]
