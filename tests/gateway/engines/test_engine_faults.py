"""What engines do wrong reaches the client as OpenAI's envelope, or as an event where a stream has already begun."""

from __future__ import annotations

import httpx
import openai
import pytest

from gateway.errors import engine_error
from tests.support.gateway.processes import Process, fake_engine, lensmith_serve
from tests.support.gateway.requests import CHAT, ask, envelope


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("status 400", 400, "max_tokens is too large"),
        ("status 404", 404, "max_tokens is too large"),
        ("status 422", 422, "max_tokens is too large"),
        ("status 500", 500, "max_tokens is too large"),
        ("status 503", 503, "max_tokens is too large"),
        ("status 401", 502, "the gateway's own key"),
        ("status 302", 502, "max_tokens is too large"),
        ("html 500", 502, "HTTP 500 without an explanation"),
        ("html 503", 503, "HTTP 503 without an explanation"),
        ("html 404", 502, "HTTP 404 without an explanation"),
        ("flat", 400, "prompt exceeds the context length"),
        ("flat200", 400, "prompt exceeds the context length"),
        ("detail", 422, "n: too big"),
        ("text", 400, "no such thing"),
        ("broken-json", 502, "not valid JSON"),
        ("html 200", 502, "not valid JSON"),
        ("reset", 502, "broke off"),
        ("long-error", 400, "xxx"),
    ],
)
def test_an_engines_error(post: httpx.Client, fault: str, status: int, says: str, stream: bool) -> None:
    body = {"model": "fake", "messages": ask(f"fault {fault}"), "stream": stream}
    error = envelope(post.post(CHAT, json=body), status)
    assert says in error["message"]
    assert "secret" not in error["message"]


def test_param_code_and_retry_after_of_an_engine_are_kept(post: httpx.Client) -> None:
    answer = post.post(CHAT, json={"model": "fake", "messages": ask("fault status 429")})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"] == {
        "message": "max_tokens is too large",
        "type": "rate_limit_error",
        "param": "max_tokens",
        "code": "too_large",
    }


def test_a_prompt_over_the_context_has_openais_code_although_the_engine_sends_none(post: httpx.Client) -> None:
    answer = post.post(CHAT, json={"model": "fake", "messages": ask("fault flat")})
    error = envelope(answer, 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_llama_cpps_word_for_the_context_is_known() -> None:
    message = "request (20013 tokens) exceeds the available context size (2048 tokens), try increasing it"
    error = engine_error({"error": {"message": message, "type": "exceed_context_size_error", "code": 400}}, 400)
    assert error is not None
    assert (error.code, error.param) == ("context_length_exceeded", "messages")


def test_an_error_as_the_first_event_is_an_http_error(post: httpx.Client) -> None:
    answer = post.post(CHAT, json={"model": "fake", "messages": ask("fault first-event"), "stream": True})
    assert envelope(answer, 502)["message"] == "max_tokens is too large"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("mid-reset", "broke off"),
        ("mid-end", "ended before it was complete"),
        ("mid-half", "broke off"),
        ("mid-event", "max_tokens is too large"),
        ("mid-event flat", "context length"),
    ],
)
def test_a_stream_that_fails_in_the_middle_says_so(
    client: openai.OpenAI, post: httpx.Client, fault: str, says: str
) -> None:
    stream = client.chat.completions.create(model="fake", messages=ask(f"fault {fault}"), stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    assert next(stream).choices[0].delta.content == "half"
    with pytest.raises(openai.APIError, match=says):
        next(stream)
    raw = post.post(CHAT, json={"model": "fake", "messages": ask(f"fault {fault}"), "stream": True})
    assert "[DONE]" not in raw.text
    assert "NEVER SEEN" not in raw.text
    assert raw.text.endswith("}}\n\n")


def test_an_engine_that_does_not_close_after_done_holds_nobody_up(gateway: Process, post: httpx.Client) -> None:
    answer = post.post(CHAT, json={"model": "fake", "messages": ask("fault linger"), "stream": True}, timeout=5)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert gateway.metric("lensmith_requests_running") == 0


def test_an_engine_that_is_silent_too_long_is_given_up(engine: Process) -> None:
    with lensmith_serve("--engine", engine.url, "--engine-timeout", "0.5") as gateway:
        gateway.wait_until("/ready", 200)
        body = {"model": "fake", "messages": ask("fault hang")}
        assert envelope(httpx.post(gateway.url + CHAT, json=body), 504)["code"] == "engine_timeout"


def test_an_engine_that_is_gone_and_comes_back() -> None:
    with fake_engine() as engine, lensmith_serve("--engine", engine.url) as gateway:
        gateway.wait_until("/ready", 200)
        engine.end()
        body = {"model": "fake", "messages": ask("hi")}
        error = envelope(httpx.post(gateway.url + CHAT, json=body), 503)
        assert error["code"] == "engine_unavailable"
        assert "nothing answers" in gateway.wait_until("/ready", 503).json()["reason"]
        assert gateway.wait_until("/health", 200).json() == {"status": "ok"}


def test_the_key_for_an_engine_comes_from_the_environment() -> None:
    with (
        fake_engine(LENSMITH_ENGINE_KEY="engine-key") as engine,
        lensmith_serve("--engine", engine.url, LENSMITH_ENGINE_KEY="engine-key") as gateway,
    ):
        gateway.wait_until("/ready", 200)
        answer = httpx.post(gateway.url + CHAT, json={"model": "fake", "messages": ask("hi")})
        assert answer.status_code == 200
