"""Anthropic's Messages API with its own client, through a real gateway to a fake engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from gateway.api.anthropic.requests import check_count, translate_count, translate_messages
from gateway.engines.remote import spec_at_url
from gateway.engines.spec import LMDEPLOY, OPENAI, TRANSFORMERS, VLLM, EngineSpec
from gateway.errors import ApiError
from tests.support.gateway.processes import Process
from tests.support.gateway.requests import ask, picture

WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def claude(gateway: Process) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key="the-client's-secret", max_retries=0) as client:
        yield client


def engine_saw(message: Any) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(message.content[0].text)["body"]
    return seen


def image() -> dict[str, Any]:
    data = picture().partition(",")[2]
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def test_a_whole_answer(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="fake", max_tokens=9, messages=ask("count 3"))
    assert message.id.startswith("msg_")
    assert (message.role, message.model, message.stop_reason) == ("assistant", "fake", "end_turn")
    assert [block.text for block in message.content] == ["0 1 2 "]
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 3)
    cut = claude.messages.create(model="fake", max_tokens=9, messages=ask("cut"))
    assert cut.stop_reason == "max_tokens"


def test_a_stream(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="fake", max_tokens=9, messages=ask("count 3")) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1
    assert message.content[0].text == "0 1 2 "
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 3)
    with claude.messages.stream(model="fake", max_tokens=9, messages=ask("count 4")) as stream:
        assert list(stream.text_stream) == ["0 ", "1 ", "2 ", "3 "]


def test_messages_become_a_chat(claude: anthropic.Anthropic) -> None:
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
    message = claude.messages.create(
        model="fake",
        max_tokens=5,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [image(), {"type": "text", "text": "Where?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, call]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Sun."}]},
                    {"type": "text", "text": "echo"},
                ],
            },
        ],
        tools=[WEATHER],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        metadata={"user_id": "bob"},
        extra_body={"temperature": 0.5, "top_k": 3, "thinking": {"type": "disabled"}},
    )
    function = {"name": "weather", "arguments": '{"city":"Oslo"}'}
    described = {"name": "weather", "description": WEATHER["description"], "parameters": WEATHER["input_schema"]}
    assert engine_saw(message) == {
        "model": "fake",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": picture()}},
                    {"type": "text", "text": "Where?"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "Let me see."}],
                "tool_calls": [{"id": "t1", "type": "function", "function": function}],
            },
            {"role": "tool", "content": [{"type": "text", "text": "Sun."}], "tool_call_id": "t1"},
            {"role": "user", "content": [{"type": "text", "text": "echo"}]},
        ],
        "tools": [{"type": "function", "function": described}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "stop": ["END"],
        "user": "bob",
    }


def test_tools_are_called_whole_and_streamed(claude: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {"model": "fake", "max_tokens": 9, "messages": ask("tools"), "tools": [WEATHER]}
    whole = claude.messages.create(**fields)
    with claude.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        (call,) = message.content
        assert (call.type, call.id, call.name, call.input) == ("tool_use", "call_7", "weather", {"city": "Oslo"})
        assert message.stop_reason == "tool_use"


def test_an_answers_form_is_a_schema(claude: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo"]}}}
    form: Any = {"type": "json_schema", "schema": schema}
    fields: dict[str, Any] = {"model": "fake", "max_tokens": 9}
    for place in ({"output_config": {"format": form, "effort": "high"}}, {"output_format": form}):
        answer = claude.messages.create(messages=ask("hi"), extra_body=place, **fields)
        assert json.loads(answer.content[0].text) == {"city": "Oslo"}
    seen = json.loads(claude.messages.create(messages=ask("echo"), extra_body=place, **fields).content[0].text)["body"]
    wanted = {"name": "answer", "schema": schema, "strict": True}
    assert seen["response_format"] == {"type": "json_schema", "json_schema": wanted}
    assert not {"output_config", "output_format"} & seen.keys()


def test_a_tool_may_be_strict() -> None:
    tool = {"name": "weather", "input_schema": {"type": "object"}, "strict": True}
    body = {"model": "m", "max_tokens": 9, "messages": ask("hi"), "tools": [tool]}
    (written,) = translate_messages(body).body["tools"]
    assert written["function"]["strict"] is True


def test_tokens_are_counted(claude: anthropic.Anthropic) -> None:
    messages: list[Any] = [{"role": "user", "content": [image(), {"type": "text", "text": "Where?"}]}]
    assert claude.messages.count_tokens(model="fake", messages=messages, system="Be brief.").input_tokens == 7


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": 0}, "'max_tokens' must be at least 1"),
        ({"temperature": 1.5}, "'temperature' must be at most 1"),
        ({"messages": []}, "'messages' must not be empty"),
        ({"messages": [{"role": "system", "content": "x"}]}, "'messages[0].role'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            "'messages[0].content[0].type' must be one of",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'messages[0].content[0].text' is required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]},
            "'messages[0].content[0].source' must have 'data'",
        ),
        ({"output_config": {"effort": "low"}}, "'output_config.effort' must be 'high'"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "'output_config.format.schema' is required"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "'thinking' cannot be honoured"),
        ({"tools": [{"name": "web_search", "type": "web_search_20250305"}]}, "'tools[0].type'"),
        ({"stop_sequences": ["x"] * 17}, "'stop_sequences'"),
    ],
)
def test_what_is_wrong_is_named_in_anthropics_words(
    claude: anthropic.Anthropic, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model="fake", max_tokens=9, messages=ask("hi"), extra_body=fields)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert says in body["error"]["message"]


def test_an_image_that_is_wrong_is_named_where_the_client_put_it(claude: anthropic.Anthropic) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    content = [{"type": "text", "text": "?"}, {"type": "image", "source": source}]
    messages: list[Any] = [*ask("hi"), {"role": "assistant", "content": "yes"}, {"role": "user", "content": content}]
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model="fake", max_tokens=9, system="x", messages=messages)
    assert "messages[2].content[1]" in str(caught.value)


def test_errors_have_anthropics_shape(claude: anthropic.Anthropic, post: httpx.Client) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="other", max_tokens=9, messages=ask("hi"))
    assert caught.value.type == "not_found_error"
    with (
        pytest.raises(anthropic.APIStatusError) as broken,
        claude.messages.stream(model="fake", max_tokens=9, messages=ask("fault mid-event")) as stream,
    ):
        list(stream)
    assert "max_tokens is too large" in str(broken.value)
    assert post.get("/v1/messages").json()["type"] == "error"
    with pytest.raises(anthropic.NotFoundError, match="Batches are not served here"):
        claude.messages.batches.list()


@pytest.mark.parametrize(
    "spec", [OPENAI, spec_at_url(VLLM), TRANSFORMERS, spec_at_url(LMDEPLOY)], ids=lambda spec: str(spec.name)
)
def test_tools_are_counted_as_the_engine_writes_them(spec: EngineSpec) -> None:
    tool = {"name": "weather", "description": "?", "input_schema": {"type": "object"}}
    body = {"model": "m", "messages": ask("hi"), "tools": [tool]}
    with_tools = check_count(translate_count(body).body, spec).body
    function = {"name": "weather", "description": "?", "parameters": {"type": "object"}}
    assert with_tools["tools"] == [{"type": "function", "function": function}]
    never_called = check_count(translate_count({**body, "tool_choice": {"type": "none"}}).body, spec).body
    assert "tools" not in never_called


def test_tools_of_a_model_that_has_none_are_refused_where_they_are_counted() -> None:
    tool = {"name": "weather", "input_schema": {"type": "object"}}
    with pytest.raises(ApiError, match="'tools' cannot be honoured"):
        check_count(translate_count({"model": "m", "messages": ask("hi"), "tools": [tool]}).body, LMDEPLOY)
