"""What the engine does not do it refuses: OpenAI's envelope, a sentence, the field's name."""

from __future__ import annotations

import base64
import threading

import httpx
import pytest

from tests.support.gateway.embedded_process import MODEL, all_at_once, chat, data_uri, picture, question

HELLO = [{"role": "user", "content": "Hello"}]
RED = data_uri(picture(1))


def refused(http, body: object, status: int = 400, **kwargs) -> dict:
    response = http.post("/v1/chat/completions", **(kwargs or {"json": body}))
    assert response.status_code == status, response.text
    assert len(response.content) < 2000
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("logit_bias", {"5": 10}),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("chat_template_kwargs", {"enable_thinking": True}),
        ("not_a_field", 1),
        ("x" * 5000, 1),
        ("temperature", -0.01),
        ("temperature", 2.01),
        ("temperature", "x"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 1.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("seed", 2**63),
        ("seed", 1.0),
        ("n", 0),
        ("n", 9),
        ("n", "x"),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_completion_tokens", -1),
        ("stop", 5),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 257),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("logprobs", 3),
        ("top_logprobs", 2),
        ("messages", []),
        ("messages", "Hello"),
        ("messages", None),
        ("model", None),
        ("model", 5),
    ],
)
def test_a_field_that_is_not_honoured_is_named(http, field, value):
    error = refused(http, {"model": MODEL, "messages": HELLO, field: value})
    assert error["param"] == field[:64]
    assert field[:64] in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("message", "where"),
    [
        (5, ""),
        ({"role": "function", "content": "x"}, ".role"),
        ({"role": ["user"], "content": "x"}, ".role"),
        ({"content": "x"}, ".role"),
        ({"role": "user"}, ".content"),
        ({"role": "user", "content": []}, ".content"),
        ({"role": "user", "content": {"type": "text"}}, ".content"),
        ({"role": "user", "content": ["x"]}, ".content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, ".content[0].type"),
        ({"role": "user", "content": [{"type": "video_url", "video_url": {"url": RED}}]}, ".content[0].type"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": RED}]}, ".content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}, ".content[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/x"}}]}, ".content[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}, ".content[0]"),
        ({"role": "system", "content": [{"type": "image_url", "image_url": {"url": RED}}]}, ".content[0]"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, ".tool_calls"),
    ],
)  # fmt: skip
def test_a_message_that_is_not_understood_is_named(http, message, where):
    error = refused(http, {"model": MODEL, "messages": [*HELLO, message]})
    assert error["param"] == f"messages[1]{where}"
    assert f"messages[1]{where}" in error["message"]


def broken_images() -> dict[str, str]:
    png = RED.partition(",")[2]
    whole = base64.b64decode(png)
    return {
        "not base64": "data:image/png;base64,***",
        "base64 cut short": "data:image/png;base64," + png[:-3],
        "empty": "data:image/png;base64,",
        "text called PNG": "data:image/png;base64," + base64.b64encode(b"just text").decode(),
        "half a file": "data:image/png;base64," + base64.b64encode(whole[: len(whole) // 2]).decode(),
        "a BMP": data_uri(picture(1), "BMP").replace("image/bmp", "image/png"),
        "a strip": data_uri(picture(1).resize((2000, 2))),
        "text/plain": RED.replace("image/png", "text/plain"),
    }


@pytest.mark.parametrize("kind", broken_images())
def test_a_broken_image_is_refused_in_our_own_words_and_troubles_nobody_else(http, kind):
    part = {"type": "image_url", "image_url": {"url": broken_images()[kind]}}
    good, errors = {"messages": question("Hello", picture(2)), "max_tokens": 4, "temperature": 0}, []
    expected = chat(http, **good)["choices"]

    def bad() -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "Look"}, part]}]
        errors.append(refused(http, {"model": MODEL, "messages": messages}))

    thread = threading.Thread(target=bad)
    thread.start()
    answers = all_at_once(http, [good] * 3)
    thread.join()
    assert [answer["choices"] for answer in answers] == [expected] * 3
    assert errors[0]["param"].startswith("messages")
    assert "Traceback" not in errors[0]["message"]
    assert "PIL" not in errors[0]["message"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_images_of_every_served_kind_are_taken(http, kind, mode):
    if (kind, mode) in {("JPEG", "RGBA"), ("JPEG", "P"), ("PNG", "CMYK"), ("WEBP", "CMYK"), ("GIF", "CMYK")}:
        pytest.skip("the format has no such mode")
    part = {"type": "image_url", "image_url": {"url": data_uri(picture(1).convert(mode), kind), "detail": "low"}}
    assert chat(http, [{"role": "user", "content": [part]}], max_tokens=1)["choices"]


def test_a_huge_image_is_held_down_to_the_models_own_size(http):
    answer = chat(http, question("Look", picture(1, 3000, 2000)), max_tokens=1)
    assert answer["usage"]["prompt_tokens"] < 100  # 65,536 pixels are at most 64 tokens


def test_fields_that_cannot_change_an_answer_are_ignored(http):
    settings = {"temperature": 0, "max_tokens": 8}
    plain = chat(http, HELLO, **settings)
    ignored = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "tools": []}
    ignored |= {
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logit_bias": {},
        "stop": None,
        "seed": None,
    }
    message = {**HELLO[0], "name": "me", "tool_calls": None, "id": "1", "prefix": False, "cache_control": {}}
    assert chat(http, [message], **settings, **ignored)["choices"] == plain["choices"]


def test_tools_that_may_not_be_chosen_are_ignored(http):
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat(http, HELLO, max_tokens=1, tools=tools, tool_choice="none")["choices"]


def test_the_context_length(http):
    limit = http.get("/v1/models").json()["data"][0]["max_model_len"]
    assert limit == 16384
    error = refused(http, {"model": MODEL, "messages": question("word " * 20000)})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "context length" in error["message"]
    assert "16384" in error["message"]
    tokens = chat(http, HELLO, max_tokens=1)["usage"]["prompt_tokens"]
    error = refused(http, {"model": MODEL, "messages": HELLO, "max_tokens": limit - tokens + 1})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert str(tokens) in error["message"]
    assert str(limit - tokens + 1) in error["message"]
    with http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": MODEL, "messages": HELLO, "max_tokens": limit - tokens, "stream": True},
    ) as response:
        assert response.status_code == 200


def test_another_model_is_not_found(http):
    assert refused(http, {"model": "gpt-4", "messages": HELLO}, 404)["code"] == "model_not_found"


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"5", b"[]", b'{"n": NaN}', b'"\\ud800"', b"[" * 5000])
def test_a_body_that_is_not_a_json_object(http, content):
    assert refused(http, None, content=content)["type"] == "invalid_request_error"


def test_lengths_that_differ_are_refused(http):
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 4, "max_completion_tokens": 5}
    assert refused(http, body)["param"] == "max_tokens"


def test_unknown_paths_and_methods_answer_with_the_envelope(http):
    assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    response = http.get("/v1/chat/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("header", [None, "Bearer wrong", "test-key", "Basic test-key"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/metrics", "/v1/chat/completions", "/nothing"])
def test_without_the_key_only_health_answers(engine, path, header):
    headers = {"authorization": header} if header else {}
    response = httpx.get(engine.url + path, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(engine.url + "/health", headers=headers).json() == {"status": "healthy"}
