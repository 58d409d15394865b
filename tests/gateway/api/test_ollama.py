"""Ollama's API through a real gateway: its own Python client, and what that client never shows."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest
from PIL import Image

from tests.support.gateway.processes import Process, until
from tests.support.gateway.requests import ask, picture


def image(format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, format)
    return file.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def client(gateway: Process) -> Iterator[ollama.Client]:
    with ollama.Client(host=gateway.url) as client:
        yield client


def engine_saw(answer: Any) -> dict[str, Any]:
    text = answer["message"]["content"] if "message" in answer else answer["response"]
    body: dict[str, Any] = json.loads(text)["body"]
    return body


def test_a_chat_is_answered_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.chat(model="fake", messages=ask("count 5"))
    assert whole.message.role == "assistant"
    assert whole.message.content == "0 1 2 3 4 "
    parts = list(client.chat(model="fake", messages=ask("count 5"), stream=True))
    assert [part.message.content for part in parts] == ["0 ", "1 ", "2 ", "3 ", "4 ", ""]
    assert [part.done for part in parts] == [False] * 5 + [True]
    for last in (whole, parts[-1]):
        assert (last.done, last.done_reason) == (True, "stop")
        assert (last.prompt_eval_count, last.eval_count) == (7, 5)
        assert last.total_duration >= last.prompt_eval_duration + last.eval_duration > 0
    assert all(part.created_at.endswith("Z") for part in parts)


def test_a_prompt_is_answered_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.generate(model="fake", prompt="count 3", system="Be brief.")
    assert whole.response == "0 1 2 "
    parts = list(client.generate(model="fake", prompt="count 3", stream=True))
    assert "".join(part.response for part in parts) == whole.response
    assert (parts[-1].done, parts[-1].done_reason, parts[-1].eval_count) == (True, "stop", 3)


def test_a_stream_is_lines_of_json_that_no_proxy_collects(post: httpx.Client) -> None:
    with post.stream("POST", "/api/chat", json={"model": "fake", "messages": ask("hi")}) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-request-id"]
        lines = answer.read().decode().splitlines()
    assert [json.loads(line)["done"] for line in lines] == [False, False, False, True]
    assert "".join(json.loads(line)["message"]["content"] for line in lines) == "Hello wörld 🙂"


@pytest.mark.parametrize(("format", "kind"), [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp")])
def test_images_come_before_the_text_as_what_they_are(client: ollama.Client, format: str, kind: str) -> None:
    data = image(format)
    messages = [{"role": "user", "content": "echo", "images": [data]}]
    for answer in (
        client.chat(model="fake", messages=messages),
        client.generate(model="fake", prompt="echo", images=[data]),
    ):
        uri = f"data:image/{kind};base64,{base64_of(data)}"
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "echo"}]
        assert engine_saw(answer)["messages"] == [{"role": "user", "content": content}]


def test_options_are_the_engines_fields_by_their_names_there(client: ollama.Client) -> None:
    options = {
        "num_predict": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 4,
        "stop": ["x"],
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "num_ctx": 4096,
        "mirostat": 0,
    }
    seen = engine_saw(client.chat(model="fake", messages=ask("echo"), options=options, keep_alive="5m"))
    expected = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 4, "stop": ["x"]}
    expected |= {"repetition_penalty": 1.1, "model": "fake", "stream": False, "messages": ask("echo")}
    assert seen == expected
    assert "max_tokens" not in engine_saw(client.generate(model="fake", prompt="echo", options={"num_predict": -1}))


def test_a_format_is_a_response_format(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    seen = engine_saw(client.chat(model="fake", messages=ask("echo"), format=schema))
    assert seen["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    seen = engine_saw(client.generate(model="fake", prompt="echo", format="json", system="Be brief."))
    assert seen["response_format"] == {"type": "json_object"}
    assert seen["messages"][0] == {"role": "system", "content": "Be brief."}


TOOL = {"type": "function", "function": {"name": "weather", "description": "?", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_with_an_object(client: ollama.Client, stream: bool) -> None:
    answer = client.chat(model="fake", messages=ask("tools"), tools=[TOOL], stream=stream)
    parts = list(answer) if stream else [answer]
    (call,) = [call for part in parts for call in part.message.tool_calls or []]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Oslo"})
    assert parts[-1].done_reason == "stop"


def test_a_conversation_with_tools_goes_on(client: ollama.Client) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    messages = [*ask("?"), called, {"role": "tool", "content": "7", "tool_name": "f"}, *ask("echo")]
    seen = engine_saw(client.chat(model="fake", messages=messages))["messages"]
    (call,) = seen[1]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert seen[2] == {"role": "tool", "content": "7", "tool_call_id": call["id"]}


def test_a_request_without_a_prompt_finds_the_model_loaded(client: ollama.Client, gateway: Process) -> None:
    assert client.generate(model="fake").done_reason == "load"
    assert client.chat(model="fake").done_reason == "load"
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate(model="nowhere")
    assert caught.value.status_code == 404


def test_models_are_listed_and_shown(client: ollama.Client) -> None:
    (model,) = client.list().models
    assert model.model == "fake"
    assert model.modified_at is not None
    assert [model.model for model in client.ps().models] == ["fake"]
    shown = client.show("fake")
    assert shown.capabilities == ["completion", "vision", "tools"]
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        client.show("other")
    assert caught.value.status_code == 404


def test_the_version_is_one_that_clients_compare(post: httpx.Client) -> None:
    assert [int(part) for part in post.get("/api/version").json()["version"].split(".")] >= [0, 6, 4]


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        ("chat", {"messages": "hi"}, "'messages'"),
        ("chat", {"messages": [{"role": "user", "content": ["x"]}]}, "'messages[0].content'"),
        ("chat", {"messages": [{"role": "developer", "content": "x"}]}, "'messages[0].role'"),
        ("chat", {"messages": [{"role": "user", "content": "?", "images": ["????"]}]}, "at messages[0].images[0] "),
        ("chat", {"messages": [{"role": "user", "content": "?", "images": [3]}]}, "'messages[0].images'"),
        ("chat", {"messages": ask("hi"), "options": {"temperature": 9}}, "'options.temperature'"),
        ("chat", {"messages": ask("hi"), "options": {"num_predict": 0}}, "'options.num_predict'"),
        ("chat", {"messages": ask("hi"), "options": {"mirostat": 2}}, "'options.mirostat'"),
        ("chat", {"messages": ask("hi"), "options": {"repeat_last_n": 32, "repeat_penalty": 1.1}}, "repeat_last_n"),
        ("chat", {"messages": ask("hi"), "options": []}, "'options'"),
        ("chat", {"messages": ask("hi"), "think": True}, "'think'"),
        ("chat", {"messages": ask("hi"), "format": "xml"}, "'format'"),
        ("chat", {"messages": ask("hi"), "stream": "no"}, "'stream'"),
        ("generate", {"prompt": ["x"]}, "'prompt'"),
        ("generate", {"prompt": "x", "raw": True}, "'raw'"),
        ("generate", {"prompt": "x", "suffix": "y"}, "'suffix'"),
        ("generate", {"prompt": "x", "images": [base64_of(b"no picture at all")]}, "at images[0] is not a PNG"),
        ("show", {"model": 3}, "'model'"),
    ],
)
def test_a_mistake_is_named_in_ollamas_words(post: httpx.Client, path: str, fields: dict[str, Any], says: str) -> None:
    answer = post.post(f"/api/{path}", json={"model": "fake", **fields})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert says in answer.json()["error"]


def test_other_paths_and_methods_fail_in_ollamas_words(post: httpx.Client) -> None:
    for answer, status in ((post.post("/api/pull", json={}), 404), (post.get("/api/chat"), 405)):
        assert answer.status_code == status
        assert isinstance(answer.json()["error"], str)


def test_an_engine_that_fails_is_seen(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(model="fake", messages=ask("fault html 503"))
    assert caught.value.status_code == 503
    stream = client.chat(model="fake", messages=ask("fault mid-reset"), stream=True)
    assert next(stream).message.content == "half"
    with pytest.raises(ollama.ResponseError, match="broke off"):
        next(stream)


def test_a_client_that_goes_aborts_the_engines_work(gateway: Process, engine: Process) -> None:
    aborted = httpx.get(engine.url + "/stats").json()["aborted"]
    body = {"model": "fake", "messages": ask("count 1000 0.05")}
    with httpx.stream("POST", gateway.url + "/api/chat", json=body) as answer:
        next(answer.iter_bytes())
    until("the engine's abort", lambda: httpx.get(engine.url + "/stats").json()["aborted"] == aborted + 1)


def test_the_asynchronous_client(gateway: Process) -> None:
    async def texts() -> list[str]:
        async with ollama.AsyncClient(host=gateway.url) as client:
            stream = await client.chat(model="fake", messages=ask("count 3"), stream=True)
            return [part.message.content async for part in stream]

    assert asyncio.run(texts()) == ["0 ", "1 ", "2 ", ""]


def test_lists_have_digests_and_names_may_have_a_tag(post: httpx.Client) -> None:
    for path in ("/api/tags", "/api/ps"):
        (listed,) = post.get(path).json()["models"]
        assert len(listed["digest"]) == 64
    assert post.post("/api/show", json={"model": "fake:latest"}).status_code == 200
    answer = post.post("/api/chat", json={"model": "fake:latest", "messages": ask("count 3"), "stream": False})
    assert answer.json()["message"]["content"] == "0 1 2 "


def test_bodies_of_a_bare_curl_and_wrapped_base64_are_taken(post: httpx.Client) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert post.post("/api/show", content=b'{"model": "fake"}', headers=form).status_code == 200
    assert post.post("/api/show", content=b'{"model": "fake"}').status_code == 200
    data = base64.encodebytes(base64.b64decode(picture("PNG", (90, 90)).partition(",")[2])).decode()
    assert "\n" in data
    body = {"model": "fake", "prompt": "count 3", "images": [data], "stream": False, "options": DEFAULTS}
    answer = post.post("/api/generate", content=json.dumps(body).encode(), headers=form)
    assert answer.json()["response"] == "0 1 2 "


def test_a_web_page_is_not_taken_for_a_curl(post: httpx.Client) -> None:
    headers = {"content-type": "text/plain", "origin": "https://other.example"}
    assert post.post("/api/generate", content=b'{"model": "fake", "prompt": "x"}', headers=headers).status_code == 415


# Values that Ollama's documentation gives.
DEFAULTS = {"repeat_last_n": 64, "repeat_penalty": 1.1, "num_ctx": 2048, "temperature": 0.7, "mirostat": 0}
