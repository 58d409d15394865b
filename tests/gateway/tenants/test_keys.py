"""API keys: made and revoked on the command line, asked for on every route, limited each by itself."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import ollama
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tenants.limits import Bucket
from tests.support.gateway.processes import Process, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask, envelope, keys_command

BODY = {"model": "fake", "messages": ask("count 5")}


@pytest.fixture(scope="module")
def guarded(engine: Process, key_file: Path, add: Callable[..., str]) -> Iterator[tuple[Process, str]]:
    """A gateway that asks for keys, and a key without limits."""
    secret = add("first")
    with lensmith_serve("--engine", engine.url, "--keys", str(key_file)) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway, secret


def chat(gateway: Process, secret: str, **fields: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.post(gateway.url + CHAT, json={**BODY, **fields}, headers=headers, timeout=30)


def working(gateway: Process, secret: str) -> None:
    """Wait until the gateway has read the file again."""

    def known() -> bool:
        headers = {"authorization": f"Bearer {secret}"}
        return httpx.get(gateway.url + "/v1/models", headers=headers).status_code == 200

    until("the key works", known)


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer", "Basic {secret}", "{secret}", "Bearer {secret}x", "Bearer é"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/docs", "/v1/models/", "/nowhere"])
def test_no_route_answers_without_a_key(guarded: tuple[Process, str], path: str, authorization: str | None) -> None:
    gateway, secret = guarded
    headers = {"authorization": authorization.format(secret=secret).encode()} if authorization else {}
    assert envelope(httpx.get(gateway.url + path, headers=headers), 401)["code"] == "invalid_api_key"
    assert envelope(httpx.options(gateway.url + path, headers=headers), 401)


def test_ollamas_routes_refuse_in_the_words_of_its_clients(guarded: tuple[Process, str]) -> None:
    gateway, secret = guarded
    for path in ("/api/chat", "/api/tags", "/api/nowhere"):
        refused = httpx.post(gateway.url + path, json=BODY)
        assert refused.status_code == 401
        assert refused.json() == {"error": "An API key is needed: Authorization: Bearer <key>."}
    client = ollama.Client(host=gateway.url, headers={"authorization": f"Bearer {secret}"})
    assert client.chat(model="fake", messages=ask("count 2")).message.content == "0 1 "


def test_the_probes_need_no_key(guarded: tuple[Process, str]) -> None:
    gateway, _ = guarded
    assert httpx.get(gateway.url + "/health").status_code == httpx.get(gateway.url + "/ready").status_code == 200


def test_the_openai_client_with_a_right_and_a_wrong_key(guarded: tuple[Process, str]) -> None:
    gateway, secret = guarded
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=secret) as client:
        assert client.chat.completions.create(**BODY).choices
    with (
        openai.OpenAI(base_url=gateway.url + "/v1", api_key="sk-x") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(**BODY)


def test_a_key_made_or_revoked_while_the_gateway_runs(
    guarded: tuple[Process, str], key_file: Path, add: Callable[..., str]
) -> None:
    gateway, _ = guarded
    secret = add("passing")
    working(gateway, secret)
    assert keys_command("remove", "passing", "--file", str(key_file)).exit_code == 0
    until("the key is refused", lambda: chat(gateway, secret).status_code == 401)


def test_a_key_revoked_in_a_mounted_secret(engine: Process, tmp_path: Path) -> None:
    """Kubernetes writes a Secret into a new folder and turns a link to it; here even with the time it had before."""
    folders = [tmp_path / "..1", tmp_path / "..2"]
    for folder in folders:
        folder.mkdir()
        kept = keys_command("add", "kept", "--file", str(folder / "keys.json")).output.strip()
    revoked = keys_command("add", "revoked", "--file", str(folders[0] / "keys.json")).output.strip()
    for folder in folders:
        os.utime(folder / "keys.json", (1_700_000_000, 1_700_000_000))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    with lensmith_serve("--engine", engine.url, "--keys", str(tmp_path / "keys.json")) as gateway:
        gateway.wait_until("/ready", 200)
        assert chat(gateway, revoked).status_code == 200
        (tmp_path / "..new").symlink_to("..2")
        (tmp_path / "..new").rename(tmp_path / "..data")
        until("the revoked key is refused", lambda: chat(gateway, revoked).status_code == 401)
        assert chat(gateway, kept).status_code == 200


def test_a_key_for_some_models_only(guarded: tuple[Process, str], add: Callable[..., str]) -> None:
    gateway, _ = guarded
    secret = add("narrow", "--model", "another")
    working(gateway, secret)
    assert envelope(chat(gateway, secret), 403)["code"] == "model_not_allowed"
    listed = httpx.get(gateway.url + "/v1/models", headers={"authorization": f"Bearer {secret}"})
    assert listed.json()["data"] == []


def test_requests_a_minute(guarded: tuple[Process, str], add: Callable[..., str]) -> None:
    gateway, first = guarded
    secret = add("slow", "--requests-per-minute", "2")
    working(gateway, secret)
    answers = [chat(gateway, secret) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert chat(gateway, first).status_code == 200, "other keys are not concerned"


def test_tokens_a_minute(guarded: tuple[Process, str], add: Callable[..., str]) -> None:
    gateway, _ = guarded
    secret = add("small", "--tokens-per-minute", "20")
    working(gateway, secret)
    # 12 tokens each: what one costs is known only afterwards, so the second one may still begin.
    assert [chat(gateway, secret, stream=stream).status_code for stream in (False, True, False)] == [200, 200, 429]


def test_a_stream_that_the_client_leaves_costs_its_tokens(
    guarded: tuple[Process, str], add: Callable[..., str]
) -> None:
    gateway, _ = guarded
    secret = add("leaving", "--tokens-per-minute", "30")
    working(gateway, secret)
    headers = {"authorization": f"Bearer {secret}"}
    body = {**BODY, "messages": ask("count 2000 0.005"), "stream": True}
    with httpx.stream("POST", gateway.url + CHAT, json=body, headers=headers, timeout=30) as answer:
        lines = answer.iter_lines()
        while "99 " not in next(lines):
            pass

    def left() -> str:
        return httpx.get(gateway.url + "/v1/models", headers=headers).headers["x-ratelimit-remaining-tokens"]

    until("its tokens are counted", lambda: left() == "0")
    assert chat(gateway, secret).status_code == 429


def test_requests_at_a_time(guarded: tuple[Process, str], add: Callable[..., str]) -> None:
    gateway, _ = guarded
    secret = add("single", "--concurrency", "1")
    working(gateway, secret)
    body = {**BODY, "messages": ask("count 10000 0.05"), "stream": True}
    headers = {"authorization": f"Bearer {secret}"}
    with httpx.stream("POST", gateway.url + CHAT, json=body, headers=headers, timeout=30) as running:
        assert running.status_code == 200
        pieces = running.iter_bytes()  # whose end would end the connection
        next(pieces)
        refused = chat(gateway, secret)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "concurrency_limit"
    until("the next one is served", lambda: chat(gateway, secret).status_code == 200)


def test_the_file_holds_no_secret_and_is_the_owners(guarded: tuple[Process, str], key_file: Path) -> None:
    gateway, secret = guarded
    assert secret not in key_file.read_text()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert secret not in gateway.log()
    assert "first" in {json.loads(line)["key"] for line in gateway.log().splitlines() if line.startswith("{")}


def test_a_refused_key_has_its_line_in_the_log(guarded: tuple[Process, str]) -> None:
    gateway, _ = guarded
    headers = {"authorization": "Bearer wrong", "x-request-id": "refused-1"}
    assert httpx.get(gateway.url + "/v1/models", headers=headers).status_code == 401
    lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{")]
    line = next(line for line in lines if line["request_id"] == "refused-1")
    assert (line["status"], line["outcome"], line["path"]) == (401, "invalid_api_key", "/v1/models")
    assert "wrong" not in gateway.log()


def test_the_list_shows_names_and_limits(key_file: Path, add: Callable[..., str]) -> None:
    add("listed", "--model", "fake", "--requests-per-minute", "3", "--concurrency", "2")
    line = next(
        line for line in keys_command("list", "--file", str(key_file)).output.splitlines() if line.startswith("listed")
    )
    assert line.endswith("fake  3 requests/min, 2 at a time")


def test_mistakes_are_told_in_a_sentence(engine: Process, tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    assert "does not exist" in keys_command("list", "--file", file).output
    assert keys_command("add", "a", "--file", file).exit_code == 0
    twice = keys_command("add", "a", "--file", file)
    assert (twice.exit_code, "already has a key called 'a'" in twice.output) == (1, True)
    gone = keys_command("remove", "b", "--file", file)
    assert (gone.exit_code, "has no key called 'b'" in gone.output) == (1, True)
    Path(file).write_text("[]")
    assert "is not a file of keys" in keys_command("list", "--file", file).output
    with lensmith_serve("--engine", engine.url, "--keys", file) as gateway:
        assert gateway.process.wait(30) == 1
        assert "is not a file of keys" in gateway.log()
        assert "Traceback" not in gateway.log()


@given(
    per_minute=st.integers(1, 600),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=40),
)
def test_a_bucket_never_gives_more_than_its_rate(per_minute: int, steps: list[tuple[float, int]]) -> None:
    now = 0.0
    bucket = Bucket(per_minute, lambda: now)
    used = 0
    for pause, amount in steps:
        now += pause
        wait = bucket.wait(amount)
        if wait == 0:
            bucket.use(amount)
            used += amount
        elif amount <= per_minute:
            now += wait + 1e-6
            assert bucket.wait(amount) == 0, "the wait it names is enough"
    assert used <= per_minute + now * per_minute / 60 + 1e-3
