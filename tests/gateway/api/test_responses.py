"""OpenAI's Responses API through a real gateway: its client, its events in their order, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.support.gateway.processes import Process
from tests.support.gateway.requests import envelope, picture

PATH = "/v1/responses"
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "?",
    "parameters": {"type": "object", "properties": {}},
    "strict": True,
}


def engine_saw(response: Response) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(response.output_text)["body"]
    return body


def test_a_text_is_answered(client: openai.OpenAI) -> None:
    response = client.responses.create(model="fake", input="count 3", metadata={"a": "b"}, temperature=0.5)
    assert response.output_text == "0 1 2 "
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert response.id.startswith("resp_")
    assert response.output[0].id.startswith("msg_")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 3, 10)
    assert response.usage.input_tokens_details.cached_tokens == 0
    assert (response.metadata, response.temperature, response.store) == ({"a": "b"}, 0.5, False)
    assert response._request_id


def test_the_answer_passes_the_clients_own_types_strictly(post: httpx.Client) -> None:
    for text in ("count 3", "tools"):
        Response.model_validate(post.post(PATH, json={"model": "fake", "input": text, "tools": [TOOL]}).json())


def test_the_events_come_in_openais_order(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="fake", input="count 3", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["0 ", "1 ", "2 "]
    assert events[0].response.status == "in_progress"
    assert events[0].response.output == []
    assert events[2].item.content == []
    assert events[7].text == events[8].part.text == events[9].item.content[0].text == "0 1 2 "
    last = events[-1].response
    assert (last.id, last.status, last.output_text) == (events[0].response.id, "completed", "0 1 2 ")
    assert last.usage.total_tokens == 10
    assert len({event.item_id for event in events[3:9]} | {events[2].item.id, events[9].item.id}) == 1


def test_the_events_are_framed_with_their_names(post: httpx.Client) -> None:
    with post.stream("POST", PATH, json={"model": "fake", "input": "hi", "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert events.pop() == ""
    for event in events:
        name, data = event.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_the_clients_own_accumulator_agrees(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake", input="hi") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == "Hello wörld 🙂"


def test_input_becomes_messages(client: openai.OpenAI) -> None:
    png = picture()
    response = client.responses.create(
        model="fake",
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "No jokes."},
            {"role": "user", "content": [{"type": "input_image", "image_url": png, "detail": "high"}]},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Red.", "annotations": []}],
            },
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "7"},
            {"role": "user", "content": [{"type": "input_text", "text": "echo"}]},
        ],
        max_output_tokens=9,
        top_p=0.5,
        user="bob",
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        extra_body={"top_k": 3},
    )
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert engine_saw(response) == {
        "model": "fake",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "No jokes."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": png, "detail": "high"}}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Red."}], "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "7"},
            {"role": "user", "content": [{"type": "text", "text": "echo"}]},
        ],
        "max_tokens": 9,
        "top_p": 0.5,
        "user": "bob",
        "logprobs": True,
        "top_logprobs": 2,
        "top_k": 3,
    }


class Answer(BaseModel):
    body: dict[str, Any]


def test_a_format_of_text_is_a_response_format(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form: Any = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    seen = engine_saw(client.responses.create(model="fake", input="echo", text={"format": form}))
    wanted = {"name": "x", "schema": schema, "strict": True}
    assert seen["response_format"] == {"type": "json_schema", "json_schema": wanted}
    parsed = client.responses.parse(model="fake", input="echo", text_format=Answer).output_parsed
    assert parsed is not None
    assert parsed.body["response_format"]["json_schema"]["name"] == "Answer"


def test_a_function_is_called(client: openai.OpenAI) -> None:
    response = client.responses.create(model="fake", input="tools", tools=[TOOL], tool_choice="required")
    (call,) = response.output
    assert (call.type, call.name, call.arguments, call.call_id) == (
        "function_call",
        "weather",
        '{"city": "Oslo"}',
        "call_7",
    )
    events = list(client.responses.create(model="fake", input="tools", tools=[TOOL], stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[5].arguments == '{"city": "Oslo"}'
    assert events[-1].response.output[0].call_id == "call_7"
    seen = engine_saw(client.responses.create(model="fake", input="echo", tools=[TOOL]))
    assert seen["tools"][0]["function"] == {key: value for key, value in TOOL.items() if key != "type"}


def test_an_answer_that_hit_its_limit_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model="fake", input="cut", max_output_tokens=1)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="fake", input="cut", stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.status == "incomplete"


def test_an_engine_that_fails_in_the_middle_is_seen(client: openai.OpenAI, post: httpx.Client) -> None:
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="fake", input="fault html 503", stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        list(client.responses.create(model="fake", input="fault mid-reset", stream=True))
    answer = post.post(PATH, json={"model": "fake", "input": "fault mid-reset", "stream": True})
    *_, failed, error = (json.loads(event.split("data: ")[1]) for event in answer.text.strip().split("\n\n"))
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert (error["type"], error["code"]) == ("error", "engine_error")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"instructions": "?", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call"}]}, "input[0]"),
        ({"instructions": ["x"]}, "instructions"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"conversation": "x"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_cannot_be_honoured_is_named(post: httpx.Client, fields: dict[str, Any], param: str) -> None:
    error = envelope(post.post(PATH, json={"model": "fake", "input": "hi", **fields}), 400)
    assert error["param"] == param
    assert "messages" not in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False, "background": False, "truncation": "disabled", "service_tier": "auto", "tools": []},
        {"reasoning": {"effort": None, "summary": "auto"}, "include": ["reasoning.encrypted_content"]},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "prompt_cache_key": "x", "stream_options": {}},
    ],
)
def test_what_asks_for_nothing_is_answered(post: httpx.Client, fields: dict[str, Any]) -> None:
    assert post.post(PATH, json={"model": "fake", "input": "hi", **fields}).status_code == 200


def test_nothing_is_stored(client: openai.OpenAI, gateway: Process) -> None:
    response = client.responses.create(model="fake", input="hi")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
