"""`response_format` in the embedded engine: whatever the weights, a whole answer keeps to its schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from pydantic import BaseModel, Field

from tests.support.gateway.embedded_process import MODEL, all_at_once, chat, picture, question

HELLO = [{"role": "user", "content": "Hello"}]
SHAPE = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square"]},
        "size": {"type": "integer", "minimum": 1, "maximum": 99},
        "red": {"type": "boolean"},
    },
    "required": ["shape", "size", "red"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3}


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def streamed(client: OpenAI, **fields: Any) -> dict[int, dict[str, Any]]:
    """Each choice of a stream: its text, finish reason and log-probabilities."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in client.chat.completions.create(model=MODEL, stream=True, **fields):
        for choice in chunk.choices:
            found = choices.setdefault(choice.index, {"text": "", "reason": None, "log_probs": []})
            found["text"] += choice.delta.content or ""
            found["reason"] = choice.finish_reason or found["reason"]
            found["log_probs"] += (choice.logprobs and choice.logprobs.content) or []
    return choices


def array(items: dict[str, Any], length: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": length, "maxItems": length + 1}


values = st.recursive(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": -5, "maximum": 120},
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "string", "maxLength": 5},
            {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
            {"type": "string", "format": "date"},
            {"const": {"a": [1, None]}},
            {"enum": ["red", 5, None, "größer"]},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(array, inner, st.integers(0, 2)),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    ),
    max_leaves=3,
)
objects = st.builds(
    lambda members, wanted: {
        "type": "object",
        "properties": members,
        "required": [name for name in members if name in wanted],
        "additionalProperties": False,
    },
    st.dictionaries(st.sampled_from(["id", "name", "größe", 'a "b"']), values, min_size=1, max_size=3),
    st.sets(st.sampled_from(["id", "name", "größe", 'a "b"'])),
)


@settings(max_examples=25, deadline=None)
@given(schema=objects, seed=st.integers(0, 1000))
def test_an_answer_that_ends_by_itself_keeps_to_its_schema(http, schema, seed):
    answer = chat(http, HELLO, response_format=schema_format(schema), max_tokens=150, seed=seed)["choices"][0]
    if answer["finish_reason"] == "stop":
        jsonschema_rs.validator_for(schema).validate(json.loads(answer["message"]["content"]))
    else:
        assert answer["finish_reason"] == "length"


def test_many_answers_end_by_themselves(http):
    """Else the test above would prove nothing."""
    answer = chat(http, HELLO, response_format=schema_format(SHAPE), max_tokens=150, n=8, seed=1)
    ended = [choice for choice in answer["choices"] if choice["finish_reason"] == "stop"]
    assert len(ended) >= 6
    for choice in ended:
        jsonschema_rs.validator_for(SHAPE).validate(json.loads(choice["message"]["content"]))


def test_any_json_object(http):
    fields = {"response_format": {"type": "json_object"}, "max_tokens": 400, "n": 8}
    choices = [choice for seed in (1, 9) for choice in chat(http, HELLO, **fields, seed=seed)["choices"]]
    ended = [choice for choice in choices if choice["finish_reason"] == "stop"]
    assert ended
    assert all(isinstance(json.loads(choice["message"]["content"]), dict) for choice in ended)
    assert all(choice["message"]["content"].lstrip().startswith("{") for choice in choices)


def test_plain_and_streamed_answers_are_the_same(http, openai_client):
    fields = {"messages": HELLO, "response_format": schema_format(SHAPE), "max_tokens": 150, "n": 3, "seed": 4}
    fields |= {"logprobs": True, "top_logprobs": 2}
    plain = chat(http, **fields)["choices"]
    for index, choice in streamed(openai_client, **fields).items():
        assert choice["text"] == plain[index]["message"]["content"]
        assert choice["reason"] == plain[index]["finish_reason"]
        assert [entry.token for entry in choice["log_probs"]] == [
            entry["token"] for entry in plain[index]["logprobs"]["content"]
        ]
        assert "".join(entry.token for entry in choice["log_probs"]) == choice["text"]


def test_log_probabilities_are_the_models_own_not_the_grammars(http):
    answer = chat(
        http, HELLO, response_format=schema_format(SHAPE), max_tokens=1, logprobs=True, top_logprobs=1, temperature=0
    )
    [entry] = answer["choices"][0]["logprobs"]["content"]
    assert entry["token"].strip() in ("{", "")
    assert entry["top_logprobs"][0]["token"] != entry["token"]
    assert entry["top_logprobs"][0]["logprob"] > entry["logprob"]


def test_answers_of_one_batch_have_each_their_own_form(http):
    plain = {"messages": HELLO, "max_tokens": 30, "temperature": 0}
    alone = chat(http, **plain)["choices"]
    forms = [SHAPE, LIST, None, SHAPE]
    requests = [
        {**plain, "max_tokens": 150, "response_format": schema_format(form), "seed": 7, "temperature": 1}
        if form
        else plain
        for form in forms
    ]
    for answer, form in zip(all_at_once(http, requests), forms, strict=True):
        choice = answer["choices"][0]
        if form is None:
            assert answer["choices"] == alone
        elif choice["finish_reason"] == "stop":
            jsonschema_rs.validator_for(form).validate(json.loads(choice["message"]["content"]))


def test_an_answer_cut_by_its_length_says_so_and_is_no_whole_json(http):
    choice = chat(http, HELLO, response_format=schema_format(SHAPE), max_tokens=3)["choices"][0]
    assert choice["finish_reason"] == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice["message"]["content"])


def test_a_stop_string_cuts_json_like_any_text(http):
    fields = {"response_format": schema_format(SHAPE), "max_tokens": 150, "seed": 1}
    full = chat(http, HELLO, **fields)["choices"][0]["message"]["content"]
    cut = chat(http, HELLO, **fields, stop=['"size"'])["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (full.partition('"size"')[0], "stop")


def test_penalties_and_narrow_sampling_keep_to_the_schema(http):
    settings = {"repetition_penalty": 1.5, "presence_penalty": 2, "frequency_penalty": 2, "top_k": 1, "min_p": 0.5}
    answer = chat(http, HELLO, response_format=schema_format(LIST), max_tokens=150, **settings)["choices"][0]
    assert answer["finish_reason"] == "stop"
    jsonschema_rs.validator_for(LIST).validate(json.loads(answer["message"]["content"]))


def test_a_picture_is_described_as_a_pydantic_class(openai_client):
    class Shape(BaseModel):
        sides: int = Field(ge=0, le=9)
        filled: bool

    answer = openai_client.chat.completions.parse(
        model=MODEL, messages=question("Which shape?", picture(1)), response_format=Shape, max_tokens=200, seed=2
    )
    assert isinstance(answer.choices[0].message.parsed, Shape)


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "grammar"}, "response_format.type"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
        ("json", "response_format.type"),
    ],
)
def test_a_form_that_is_none_is_named(http, form, param):
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "response_format": form})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, '"not"'),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"type": "string", "format": "color"}, "color"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-a"),
        ({"anyOf": [{"type": "integer"}, {"if": {}, "then": {}}]}, '"if"'),
        ({"$ref": "http://example.com/schema"}, "http"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ""),
        ({"x-guidance": {"lenient": True}, "not": {}}, '"not"'),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_honoured_is_refused(http, schema, named, stream):
    body = {"model": MODEL, "messages": HELLO, "response_format": schema_format(schema), "stream": stream}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("response_format", "invalid_schema")
    assert "'response_format'" in error["message"]
    assert named in error["message"]
