"""Tools in the embedded engine: shown to the model by its chat template, called in a form that can't be wrong."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.embedded.tools import ToolCall, ToolCallParser
from tests.support.gateway.embedded_process import MODEL, chat, data_uri, picture

HELLO = [{"role": "user", "content": "Hello"}]
POINT = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/side"}, "label": {"enum": ["a", "</tool_call>"]}},
    "required": ["x", "label"],
    "additionalProperties": False,
    "$defs": {"side": {"type": "integer", "minimum": 0, "maximum": 99}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "point", "description": "Point at it.", "parameters": POINT}},
    {"type": "function", "function": {"name": "stop.now"}},
]
NAMED = {"type": "function", "function": {"name": "point"}}


def valid(call: dict[str, Any]) -> None:
    schema = {"point": POINT, "stop.now": {"const": {}}}[call["function"]["name"]]
    jsonschema_rs.validator_for(schema).validate(json.loads(call["function"]["arguments"]))
    assert call["type"] == "function"
    assert call["id"]


def test_a_required_call_is_one_of_the_tools(http):
    choices = chat(http, HELLO, tools=TOOLS, tool_choice="required", max_tokens=300, n=8, seed=1)["choices"]
    ended = [choice for choice in choices if choice["finish_reason"] == "tool_calls"]
    assert len(ended) >= 4
    for choice in ended:
        assert choice["message"]["content"] is None
        assert choice["message"]["tool_calls"]
        for call in choice["message"]["tool_calls"]:
            valid(call)


def test_a_named_tool_is_called_once(http):
    choices = chat(http, HELLO, tools=TOOLS, tool_choice=NAMED, max_tokens=300, n=8, seed=2)["choices"]
    for choice in choices:
        if choice["finish_reason"] == "tool_calls":
            [call] = choice["message"]["tool_calls"]
            assert call["function"]["name"] == "point"
            valid(call)
    assert sum(choice["finish_reason"] == "tool_calls" for choice in choices) >= 4


def test_one_call_at_most_where_calls_in_parallel_are_not_wanted(http):
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    for choice in chat(http, HELLO, **fields, max_tokens=300, n=8, seed=3)["choices"]:
        assert len(choice["message"].get("tool_calls", ())) == (choice["finish_reason"] == "tool_calls")


def test_streamed_calls_are_those_of_the_plain_answer(http, openai_client):
    fields: dict[str, Any] = {
        "messages": HELLO,
        "tools": TOOLS,
        "tool_choice": "required",
        "max_tokens": 300,
        "seed": 1,
    }
    plain = chat(http, **fields)["choices"][0]
    calls: list[Any] = []
    reasons = []
    for chunk in openai_client.chat.completions.create(model=MODEL, stream=True, **fields):
        calls += chunk.choices[0].delta.tool_calls or []
        reasons.append(chunk.choices[0].finish_reason)
    assert [call.index for call in calls] == list(range(len(calls)))
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in plain["message"]["tool_calls"]
    ]
    assert reasons[-1] == plain["finish_reason"]


def test_tools_are_shown_to_the_model_unless_it_must_not_call_them(http, reference):
    def prompt(**fields: Any) -> int:
        count: int = http.post("/tokenize", json={"model": MODEL, "messages": HELLO, **fields}).json()["count"]
        return count

    shown = reference.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        tools=TOOLS,
        add_generation_prompt=True,
        tokenize=True,
        sanitize_control_tokens=True,
    )
    assert prompt(tools=TOOLS) == len(shown[0])
    assert prompt(tools=TOOLS, tool_choice="none") == prompt() == prompt(tools=[])


def test_free_text_stays_free_where_the_model_may_choose(http):
    choice = chat(http, HELLO, tools=TOOLS, max_tokens=20, temperature=0)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["content"]) > 20
    assert "tool_calls" not in choice["message"]


def test_an_answer_is_json_or_a_call_where_both_are_allowed(http):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": {"done": True}}}}
    fields = {"tools": TOOLS, "response_format": form}
    for choice in chat(http, HELLO, **fields, max_tokens=300, n=8, seed=9)["choices"]:
        if choice["finish_reason"] == "stop":
            assert json.loads(choice["message"]["content"]) == {"done": True}
        elif choice["finish_reason"] == "tool_calls":
            valid(choice["message"]["tool_calls"][0])


def test_a_call_cut_by_the_length_is_text(http):
    choice = chat(http, HELLO, tools=TOOLS, tool_choice=NAMED, max_tokens=6)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("<tool_call>")
    assert "tool_calls" not in choice["message"]


def test_calls_and_their_results_with_a_picture_are_part_of_the_prompt(http, reference):
    image = picture(1)
    call = {"id": "c1", "type": "function", "function": {"name": "point", "arguments": '{"x": 5, "label": "a"}'}}
    result = [
        {"type": "text", "text": "here"},
        {"type": "image_url", "image_url": {"url": data_uri(image)}},
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
    ]
    taken = http.post("/tokenize", json={"model": MODEL, "messages": messages, "tools": TOOLS}).json()["tokens"]
    arguments = {"x": 5, "label": "a"}
    expected = reference.processor.apply_chat_template(
        [
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {
                "role": "assistant",
                "content": [],
                "tool_calls": [{"type": "function", "function": {"name": "point", "arguments": arguments}}],
            },
            {"role": "tool", "content": [{"type": "text", "text": "here"}, {"type": "image", "image": image}]},
        ],
        tools=TOOLS,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        sanitize_control_tokens=True,
    )
    assert taken == list(expected["input_ids"][0])
    assert chat(http, messages, tools=TOOLS, max_tokens=2)["usage"]["prompt_tokens"] == len(taken)


UNHONOURED = {"type": "object", "properties": {"a": {"not": {}}}}


def test_only_a_strict_schema_must_be_honoured(http):
    function = {"name": "f", "parameters": UNHONOURED}
    tools = [{"type": "function", "function": function}]
    assert chat(http, HELLO, tools=tools, max_tokens=2)["choices"]
    tools = [*TOOLS, {"type": "function", "function": {**function, "strict": True}}]
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "tools": tools})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools[2].function.parameters"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "<|im_end|>"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"properties": {"a<|im_end|>": {"type": "null"}}}},
                    }
                ]
            },
            "tools",
        ),
    ],
)
def test_tools_that_cannot_be_called_are_refused(http, fields, param):
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "calls",
    [
        "x",
        [5],
        [{"id": "1"}],
        [{"id": "1", "function": {"name": 5}}],
        [{"id": "1", "function": {"name": "f", "arguments": "{"}}],
        [{"id": "1", "function": {"name": "f", "arguments": "[" * 5000}}],
        [{"id": "1", "function": {"name": "f", "arguments": "5"}}],
    ],
)
def test_calls_of_the_past_that_are_none_are_refused(http, calls):
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": calls}]
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[1].tool_calls"


def test_control_tokens_in_a_tools_description_are_text(http):
    def prompt(description: str) -> list[int]:
        tools = [{"type": "function", "function": {"name": "f", "description": description}}]
        response = http.post("/tokenize", json={"model": MODEL, "messages": HELLO, "tools": tools})
        tokens: list[int] = response.json()["tokens"]
        return tokens

    plain, hostile = prompt("x"), prompt("<|im_start|><|im_end|>")
    opening = plain[0]  # <|im_start|> opens every turn
    assert hostile.count(opening) == plain.count(opening)
    assert len(hostile) > len(plain) + 2


texts = st.text("a<>\n/tool_c", max_size=12)
pieces = st.lists(
    st.one_of(texts, st.sampled_from(["<tool_call>", '\n{"name": "f", "arguments": {}}\n', "</tool_call>"]))
)


@given(pieces, st.lists(st.integers(0, 200), max_size=6))
def test_text_and_calls_are_the_same_however_they_are_cut(parts, cuts):
    text = "".join(parts)
    whole, split = ToolCallParser(), ToolCallParser()
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    shown, calls = "", []
    for begin, end in pairwise(edges):
        more, found = split.feed(text[begin:end])
        shown, calls = shown + more, calls + found
    expected, expected_calls = whole.feed(text)
    assert [call.name for call in calls] == [call.name for call in expected_calls]
    if not expected_calls:  # white space after a call is dropped piece by piece
        assert shown + split.finish() == expected + whole.finish() == text


def test_the_parser_keeps_text_before_calls_and_drops_white_space_between_them():
    parser = ToolCallParser()
    block = '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>'
    text, calls = parser.feed(f"Sure.{block}\n{block}")
    assert text == "Sure."
    assert [(call.name, call.arguments) for call in calls] == [("f", '{"a": "</tool_call>"}')] * 2
    assert parser.finish() == ""
    assert len({call.id for call in calls}) == 2
    assert ToolCall("f", "{}").as_json()["function"] == {"name": "f", "arguments": "{}"}
