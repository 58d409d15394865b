"""Structured output and tools with the real engine: one that the gateway started, and the same one at a URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import psutil
import pytest

from tests.support.gateway.processes import Process, lensmith_serve
from tests.support.gpu_requests import ask, picture, question
from tests.support.gpu_server import wait_ready

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "green", "blue", "grey"]},
        "shapes": {"type": "array", "items": {"type": "string", "enum": ["circle", "square"]}, "maxItems": 2},
        "large": {"type": "boolean"},
    },
    "required": ["colour", "shapes", "large"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "note_colour", "description": "Writes a colour down.", "parameters": SCHEMA},
    }
]


def engine_of(gateway: Process) -> psutil.Process:
    """The engine's process: the child that has a key in its environment and a port on its command line."""
    return next(p for p in psutil.Process(gateway.process.pid).children() if "LENSMITH_ENGINE_KEY" in p.environ())


@pytest.fixture(scope="module")
def at_url(served: Process) -> Iterator[Process]:
    """A second gateway in front of the first one's engine, which it knows by its URL alone."""
    engine = engine_of(served)
    words = engine.cmdline()
    port = next(words[index + 1] for index, word in enumerate(words) if word in ("--port", "--server-port"))
    key = engine.environ()["LENSMITH_ENGINE_KEY"]
    with lensmith_serve("--engine", f"http://127.0.0.1:{port}", LENSMITH_ENGINE_KEY=key) as gateway:
        wait_ready(gateway)
        yield gateway


@pytest.fixture(params=["started", "at a URL"])
def either(request: pytest.FixtureRequest, served: Process) -> Iterator[openai.OpenAI]:
    gateway = served if request.param == "started" else request.getfixturevalue("at_url")
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def text_of(answer: Any, stream: bool) -> str:
    if not stream:
        return str(answer.choices[0].message.content)
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


def finish_of(answer: Any, stream: bool) -> tuple[str, str]:
    """(text, finish reason) of an answer or of its chunks."""
    if not stream:
        return str(answer.choices[0].message.content), answer.choices[0].finish_reason
    choices = [chunk.choices[0] for chunk in answer if chunk.choices]
    return "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "picture", "strict": True, "schema": schema}}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_one_of_the_values_that_its_schema_lists(either: openai.OpenAI, stream: bool) -> None:
    wanted = schema_format(SCHEMA["properties"]["colour"])
    answer = ask(either, question(picture()), response_format=wanted, max_tokens=20, stream=stream)
    text, finish = finish_of(answer, stream)
    assert finish == "stop"
    assert json.loads(text) in SCHEMA["properties"]["colour"]["enum"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_keeps_to_its_schema(either: openai.OpenAI, stream: bool) -> None:
    answer = ask(either, question(picture()), response_format=schema_format(SCHEMA), max_tokens=200, stream=stream)
    text, finish = finish_of(answer, stream)
    assert text.startswith("{")
    if finish == "stop":
        jsonschema_rs.validate(SCHEMA, json.loads(text))
    else:  # LMDeploy's grammar takes any white space, which a model that was never trained for JSON goes on writing
        assert finish == "length"
        assert text.rstrip() == "{" or '"colour"' in text


def test_an_answer_is_a_json_object(either: openai.OpenAI) -> None:
    answer = ask(either, question(picture()), response_format={"type": "json_object"}, max_tokens=300)
    text = text_of(answer, False)
    assert text.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_taken_and_calls_are_whole(either: openai.OpenAI, stream: bool) -> None:
    """Whether a model calls a tool is the model's; what it calls has a name that was offered and arguments in JSON."""
    answer = ask(either, question(picture()), tools=TOOLS, max_tokens=64, stream=stream)
    if stream:
        chunks = [chunk for chunk in answer if chunk.choices]
        assert chunks[-1].choices[0].finish_reason in ("stop", "length", "tool_calls")
        return
    for call in answer.choices[0].message.tool_calls or ():
        assert call.function.name == "note_colour"
        json.loads(call.function.arguments)


def test_no_tool_is_called_where_none_may_be(either: openai.OpenAI) -> None:
    answer = ask(either, question(picture()), tools=TOOLS, tool_choice="none", max_tokens=32)
    assert not answer.choices[0].message.tool_calls


def test_several_stop_strings_with_log_probabilities(either: openai.OpenAI) -> None:
    text = text_of(ask(either, question(picture()), max_tokens=24), False)
    stops = [text[len(text) // 2 :][:5], "never in it"]
    answer = ask(either, question(picture()), max_tokens=24, stop=stops, logprobs=True, top_logprobs=2)
    seen = text_of(answer, False)
    assert seen == text[: text.index(stops[0])]
    tokens = b"".join(bytes(entry.bytes or ()) for entry in answer.choices[0].logprobs.content)
    assert tokens.startswith(seen.encode()), "the log-probabilities are of the answer's tokens"
