"""What clients get wrong: an error in OpenAI's envelope that says what and where, and a server that goes on."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.gateway.processes import Process
from tests.support.gateway.requests import CHAT, ask, envelope, picture


def fine(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": ask("hi"), **fields}


@pytest.mark.parametrize(
    "raw", ["", "not json", "[]", "null", "7", '"x"', "{", '{"model": NaN}', '{"model": "\\ud800"}']
)
def test_a_body_that_is_no_json_object(post: httpx.Client, raw: str) -> None:
    answer = post.post(CHAT, content=raw, headers={"content-type": "application/json"})
    assert envelope(answer, 400)["code"] == "invalid_json"


def test_a_deeply_nested_body(post: httpx.Client) -> None:
    raw = b'{"model":' + b"[" * 5000 + b"]" * 5000 + b"}"
    envelope(post.post(CHAT, content=raw, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": ask("hi")}, "model"),
        ({"model": 3, "messages": ask("hi")}, "model"),
        ({"model": "fake"}, "messages"),
        (fine(messages=[]), "messages"),
        (fine(messages="hi"), "messages"),
        (fine(messages=["hi"]), "messages[0]"),
        (fine(messages=[{"role": "user"}]), "messages[0].content"),
        (fine(messages=[{"role": "user", "content": []}]), "messages[0].content"),
        (fine(messages=[{"role": "wizard", "content": "x"}]), "messages[0].role"),
        (fine(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (fine(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]), "messages[0].content[0].type"),
        (fine(messages=[{"role": "user", "content": ["x"]}]), "messages[0].content[0].type"),
        (
            fine(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": picture()}]}]),
            "messages[0].content[0].image_url",
        ),
        (
            fine(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": None}}]}]),
            "messages[0].content[0].image_url",
        ),
        (fine(temperature=-0.01), "temperature"),
        (fine(temperature=2.01), "temperature"),
        (fine(temperature="hot"), "temperature"),
        (fine(temperature=True), "temperature"),
        (fine(top_p=0), "top_p"),
        (fine(top_p=1.01), "top_p"),
        (fine(n=0), "n"),
        (fine(n="x"), "n"),
        (fine(n=1.5), "n"),
        (fine(max_tokens=0), "max_tokens"),
        (fine(max_completion_tokens=-1), "max_completion_tokens"),
        (fine(seed=2**63), "seed"),
        (fine(seed=2**70), "seed"),
        (fine(top_logprobs=21, logprobs=True), "top_logprobs"),
        (fine(top_logprobs=2), "top_logprobs"),
        (fine(stream="yes"), "stream"),
        (fine(stream_options={"include_usage": True}), "stream_options"),
        (fine(stream=True, stream_options=[]), "stream_options"),
        (fine(stop=""), "stop"),
        (fine(stop=[1]), "stop"),
        (fine(stop=["x"] * 17), "stop"),
        (fine(tools={}), "tools"),
        (fine(tools=[{"type": "function"}]), "tools[0]"),
        (fine(tool_choice="sometimes"), "tool_choice"),
        (fine(tool_choice="required"), "tool_choice"),
        (fine(response_format={"type": "json_schema"}), "response_format.json_schema.schema"),
        (fine(response_format="json"), "response_format.type"),
        (fine(logit_bias={"x": 1}), "logit_bias"),
        (fine(logit_bias={"1": 101}), "logit_bias.1"),
        (fine(user=3), "user"),
        (fine(audio={"voice": "x"}), "audio"),
        (fine(modalities=["text", "audio"]), "modalities"),
        (fine(functions=[{"name": "x"}]), "functions"),
        (fine(store=True), "store"),
        (fine(verbosity="high"), "verbosity"),
    ],
)
def test_a_field_that_is_wrong_is_named(post: httpx.Client, body: dict[str, Any], param: str) -> None:
    assert envelope(post.post(CHAT, json=body), 400)["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": None, "stop": None, "stream": None, "tools": None, "n": None},
        {"temperature": 0, "top_p": 1, "presence_penalty": 0, "store": False, "modalities": ["text"]},
        {"seed": -(2**63), "top_k": -1, "logprobs": True, "top_logprobs": 20, "unknown_field": {"a": [1]}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": "y", "name": "bob", "zz": 1}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}, *ask("hi")]},
    ],
)
def test_what_is_allowed_is_answered(post: httpx.Client, fields: dict[str, Any]) -> None:
    assert post.post(CHAT, json=fine(**fields)).status_code == 200


def test_a_byte_order_mark_does_no_harm(post: httpx.Client) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(fine()).encode()
    assert post.post(CHAT, content=content, headers={"content-type": "application/json"}).status_code == 200


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"type": "image", "image": "x"}, "must be one of 'text', 'image_url', 'refusal'."),
        ({"text": "x"}, "is required."),
    ],
)
def test_a_part_of_another_kind_is_told_which_there_are(
    post: httpx.Client, part: dict[str, Any], sentence: str
) -> None:
    error = envelope(post.post(CHAT, json=fine(messages=[{"role": "user", "content": [part]}])), 400)
    assert error["message"] == f"'messages[0].content[0].type' {sentence}"


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=ask("hi"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_body_of_60_megabytes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="fake", messages=ask("x" * 60_000_000))
    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"
    assert "33554432 bytes" in caught.value.message
    assert client.chat.completions.create(model="fake", messages=ask("hi")).choices


def test_a_body_without_length_is_counted_while_it_comes(post: httpx.Client) -> None:
    def chunks():
        for _ in range(40):
            yield b" " * 1_000_000

    envelope(post.post(CHAT, content=chunks(), headers={"content-type": "application/json"}), 413)


def test_a_body_of_9_megabytes_is_taken(client: openai.OpenAI) -> None:
    assert client.chat.completions.create(model="fake", messages=ask("x" * 9_000_000)).choices


def test_a_client_that_stops_sending_is_told_so(gateway: Process) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as raw:
        raw.settimeout(20)
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        assert answer.status == 408
        assert json.loads(answer.read())["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("headers", [{"content-type": "text/plain"}, {"content-encoding": "gzip"}])
def test_another_kind_of_body(post: httpx.Client, headers: dict[str, str]) -> None:
    answer = post.post(CHAT, json=fine(), headers=headers)
    envelope(answer, 415)


def test_no_such_path_and_no_such_method(post: httpx.Client) -> None:
    assert envelope(post.get("/v2/anything"), 404)["code"] == "not_found"
    assert envelope(post.get(CHAT), 405)["code"] == "method_not_allowed"
    envelope(post.post("/v1/models"), 405)
    envelope(post.post(CHAT + "/", json=fine()), 404)


PNG = picture("PNG")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://example.com/cat.png", "does not fetch images"),
        ("http://169.254.169.254/latest/meta-data", "does not fetch images"),
        ("file:///etc/passwd", "does not fetch images"),
        ("/etc/passwd", "does not fetch images"),
        ("cat.png", "does not fetch images"),
        ("", "does not fetch images"),
        ("data:image/png,abc", "data:image/png;base64"),
        ("data:;base64,AAAA", "is not a PNG, JPEG"),
        ("data:image/png;base64", "data:image/png;base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        (PNG + "A", "not valid base64"),
        (PNG[:60] + "é" + PNG[60:], "not valid base64"),
        ("data:image/png;base64,iVBO=AAA", "not valid base64"),
        ("data:image/png;base64,i===", "not valid base64"),
        ("data:image/png;base64,====", "not valid base64"),
        ("data:image/png;base64," + base64.b64encode(b"just some text, no picture").decode(), "is not a PNG, JPEG"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "is not a PNG, JPEG"),
        ("data:text/html;base64," + base64.b64encode(b"<p>").decode(), "is not a PNG, JPEG"),
        (PNG[:-32], "is cut short"),
        (picture("PNG", (20_000, 1)), "at most 200 times"),
        (picture("PNG", (9000, 9000)), "9000x9000 pixels"),
    ],
)
def test_an_image_that_is_refused_is_named(post: httpx.Client, url: str, says: str) -> None:
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    error = envelope(post.post(CHAT, json=fine(messages=[*ask("hi"), {"role": "user", "content": parts}])), 400)
    assert error["param"] == "messages[1].content[1]"
    assert says in error["message"]
    assert error["code"] == "invalid_image"


def test_too_many_images(post: httpx.Client) -> None:
    parts = [{"type": "image_url", "image_url": {"url": PNG}}] * 17
    error = envelope(post.post(CHAT, json=fine(messages=[{"role": "user", "content": parts}])), 400)
    assert error["code"] == "too_many_images"


def test_too_many_pixels_together(post: httpx.Client) -> None:
    parts = [{"type": "image_url", "image_url": {"url": picture("PNG", (7000, 7000))}}] * 3
    error = envelope(post.post(CHAT, json=fine(messages=[{"role": "user", "content": parts}])), 400)
    assert "147000000 pixels together" in error["message"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = [
    *(
        "temperature",
        "top_p",
        "n",
        "seed",
        "stop",
        "max_tokens",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
    ),
    *("tools", "tool_choice", "messages", "response_format", "logit_bias", "user", "metadata", "presence_penalty"),
    *("functions", "function_call", "modalities"),
]


@pytest.mark.parametrize("name", sorted({*FIELDS} - {"messages"}))
def test_null_is_as_if_a_field_was_not_given(post: httpx.Client, name: str) -> None:
    assert post.post(CHAT, json=fine(**{name: None})).status_code == 200


NO_FIXTURE_CHECK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=70, deadline=None, suppress_health_check=NO_FIXTURE_CHECK)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4))
def test_no_values_of_fields_break_the_gateway(post: httpx.Client, fields: dict[str, Any]) -> None:
    answer = post.post(CHAT, json=fine(**fields))
    if answer.status_code != 200:
        assert envelope(answer, 400)["param"]


@settings(max_examples=70, deadline=None, suppress_health_check=NO_FIXTURE_CHECK)
@given(
    part=json_values | st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "image_url": json_values})
)
def test_no_content_part_breaks_the_gateway(post: httpx.Client, part: Any) -> None:
    error = envelope(post.post(CHAT, json=fine(messages=[{"role": "user", "content": [part]}])), 400)
    assert error["param"].startswith("messages[0].content[0]")


@settings(max_examples=70, deadline=None, suppress_health_check=NO_FIXTURE_CHECK)
@given(raw=st.binary(max_size=200))
def test_no_bytes_break_the_gateway(post: httpx.Client, raw: bytes) -> None:
    envelope(post.post(CHAT, content=raw, headers={"content-type": "application/json"}), 400)
