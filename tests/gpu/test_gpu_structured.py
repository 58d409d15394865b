"""Structured output and tools with the real engine: one that the gateway started, and the same one at a URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import openai
import psutil
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.support.gateway.processes import Process, lensmith_serve
from tests.support.gpu_requests import ask, picture, question
from tests.support.gpu_server import AT_URL, ENGINE, wait_ready


class Picture(BaseModel):
    """What answers and calls say."""

    model_config = ConfigDict(extra="forbid", strict=True)
    colour: Literal["red", "green", "blue", "grey"]
    shapes: Annotated[list[Literal["circle", "square"]], Field(max_length=2)]
    large: bool


SCHEMA = Picture.model_json_schema()
LONG = 400  # tokens of an answer that nothing ends
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Writes it down.", "parameters": SCHEMA}}
    for name in ("note_size", "note_colour")
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


@pytest.fixture(params=["at a URL"] if AT_URL else ["started", "at a URL"])
def either(request: pytest.FixtureRequest, served: Process) -> Iterator[openai.OpenAI]:
    gateway = served if AT_URL or request.param == "started" else request.getfixturevalue("at_url")
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
        Picture.model_validate_json(text)
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
        assert call.function.name in ("note_size", "note_colour")
        json.loads(call.function.arguments)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "note_colour"}}])
def test_a_call_that_must_be_made_is_made(either: openai.OpenAI, choice: Any, stream: bool) -> None:
    fields = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 200}
    answer = ask(either, question(picture()), **fields, stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in answer if chunk.choices]
        finish, pieces = choices[-1].finish_reason, [call for c in choices for call in c.delta.tool_calls or ()]
        names = [piece.function.name for piece in pieces if piece.function.name]
        calls = ["".join(p.function.arguments or "" for p in pieces if p.index == at) for at in range(len(names))]
    else:
        finish = answer.choices[0].finish_reason
        made = answer.choices[0].message.tool_calls or ()
        names, calls = [call.function.name for call in made], [call.function.arguments for call in made]
    if finish == "length":  # as above: white space without end
        return
    assert finish == "tool_calls"
    assert names
    assert set(names) <= ({"note_size", "note_colour"} if choice == "required" else {"note_colour"})
    for arguments in calls:
        Picture.model_validate_json(arguments)


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


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_over_at_its_stop_string_and_its_usage_is_of_that(either: openai.OpenAI, stream: bool) -> None:
    text = text_of(ask(either, question(picture()), max_tokens=24), False)
    fields: dict[str, Any] = {"max_tokens": LONG, "stop": [text[len(text) // 2 :][:5]]}
    if ENGINE != "transformers":  # whose own stop strings end it
        fields["extra_body"] = {"ignore_eos": True}
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = ask(either, question(picture()), **fields)
    usage = list(answer)[-1].usage if stream else answer.usage
    assert 0 < usage.completion_tokens < LONG // 2, "the engine went on; was it started with --enable-abort-handling?"
    assert usage.prompt_tokens == ask(either, question(picture()), max_tokens=1).usage.prompt_tokens
