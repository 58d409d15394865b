"""The official OpenAI client through a real gateway to a fake engine."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests.support.gateway.processes import Process, until
from tests.support.gateway.requests import ask, picture


def test_a_plain_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=ask("hi"))
    assert answer.choices[0].message.content == "Hello wörld 🙂"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert answer._request_id


def test_a_stream_gives_the_same_text_and_no_usage_unless_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="fake", messages=ask("hi"), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello wörld 🙂"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_with_usage_ends_with_one_chunk_without_choices(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="fake", messages=ask("hi"), stream=True, stream_options=options))
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3


def test_a_stream_is_served_as_events_that_no_proxy_collects(post: httpx.Client) -> None:
    body = {"model": "fake", "messages": ask("hi"), "stream": True}
    with post.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.read().endswith(b"data: [DONE]\n\n")


def test_images_and_turns_reach_the_engine_unchanged(client: openai.OpenAI) -> None:
    png, jpeg = picture("PNG"), picture("JPEG")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": png}}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "Red."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "echo"}, {"type": "image_url", "image_url": {"url": jpeg}}],
        },
    ]
    answer = client.chat.completions.create(model="fake", messages=messages, extra_body={"custom_field": [1]})
    seen = json.loads(answer.choices[0].message.content)["body"]
    assert seen["messages"] == messages
    assert seen["custom_field"] == [1]


def test_the_clients_key_and_cookies_stay_here_and_the_request_id_goes_on(post: httpx.Client) -> None:
    headers = {"authorization": "Bearer sk-client", "cookie": "a=b", "x-request-id": "trace-42"}
    answer = post.post("/v1/chat/completions", json={"model": "fake", "messages": ask("echo")}, headers=headers)
    seen = {k.lower(): v for k, v in json.loads(answer.json()["choices"][0]["message"]["content"])["headers"].items()}
    assert "authorization" not in seen
    assert "cookie" not in seen
    assert seen["x-request-id"] == "trace-42"
    assert answer.headers.get_list("x-request-id") == ["trace-42"]


@pytest.mark.parametrize("given", ["a b", "x" * 200, "é", "<script>"])
def test_an_odd_request_id_is_replaced(post: httpx.Client, given: str) -> None:
    answer = post.get("/health", headers={"x-request-id": given.encode()})
    assert answer.headers["x-request-id"].startswith("req-")


def test_duplicate_keys_cannot_smuggle_anything_past_the_checks(post: httpx.Client) -> None:
    raw = '{"model":"fake","messages":[{"role":"user","content":"file:///etc/passwd"}],"messages":[{"role":"user","content":"echo"}]}'
    answer = post.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    seen = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert "passwd" not in json.dumps(seen)


def test_models_are_listed_and_described(client: openai.OpenAI, post: httpx.Client) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other/model")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("prompt", "stream"),
    [("slow 60", False), ("slow 60", True), ("count 1000 0.05", True)],
    ids=["plain", "prefill", "mid"],
)
def test_a_client_that_goes_aborts_the_engines_work(
    gateway: Process, engine: Process, prompt: str, stream: bool
) -> None:
    aborted = httpx.get(engine.url + "/stats").json()["aborted"]
    body = {"model": "fake", "messages": ask(prompt), "stream": stream}
    timeout = httpx.Timeout(5, read=0.3)
    with httpx.Client(base_url=gateway.url, timeout=timeout) as client:
        if prompt.startswith("count"):
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body)
    until("the engine's abort", lambda: httpx.get(engine.url + "/stats").json()["aborted"] == aborted + 1)
    until("nothing runs", lambda: gateway.metric("lensmith_requests_running") == 0)
    assert gateway.metric("lensmith_requests_total", model="fake", status="499") >= 1


def test_streams_leave_their_connection_to_the_next_request(engine: Process, client: openai.OpenAI) -> None:
    list(client.chat.completions.create(model="fake", messages=ask("hi"), stream=True))
    before = httpx.get(engine.url + "/stats").json()["connections"]
    for _ in range(5):
        list(client.chat.completions.create(model="fake", messages=ask("hi"), stream=True))
    assert httpx.get(engine.url + "/stats").json()["connections"] == before
