"""What engines leave out or get wrong in their answers, and what a strict client gets instead."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.errors import ApiError
from gateway.streaming.completion import read_completion
from gateway.streaming.normalise import Normaliser
from gateway.streaming.relay import Relay

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
FIRST = {**HEAD, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
TEXT = {**HEAD, "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
LAST = {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {**HEAD, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}
DONE = b"data: [DONE]\n\n"


def stream(*chunks: dict[str, Any] | bytes) -> bytes:
    written = (c if isinstance(c, bytes) else b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks)
    return b"".join(written)


def relay(n: int = 1, include_usage: bool = True, **options: Any) -> Relay:
    return Relay(include_usage, normaliser=Normaliser("r1", "m", n, prompt_tokens=5), **options)


def chunks(out: bytes) -> list[dict[str, Any]]:
    """The chunks as openai's strict types read them; the stream must end with [DONE]."""
    *events, last = [event for event in out.decode().split("\n\n") if event]
    assert last == "data: [DONE]"
    payloads = [json.loads(event.removeprefix("data: ")) for event in events]
    for payload in payloads:
        ChatCompletionChunk.model_validate(payload, strict=True)
    return payloads


def without(chunk: dict[str, Any], *path: str | int) -> dict[str, Any]:
    copy = json.loads(json.dumps(chunk))
    *parents, last = path
    target = copy
    for key in parents:
        target = target[key]
    del target[last]
    return copy


def test_a_sound_stream_is_passed_on_byte_for_byte() -> None:
    sent = stream(FIRST, TEXT, TEXT, LAST, USAGE, DONE)
    passing = relay()
    assert b"".join(passing.feed(sent[at : at + 7]) for at in range(0, len(sent), 7)) == sent
    assert passing.done


@pytest.mark.parametrize(
    "path", [("id",), ("object",), ("created",), ("model",), ("choices", 0, "index"), ("choices", 0, "delta", "role")]
)
def test_a_field_that_is_missing_in_every_chunk_is_filled_in(path: tuple[str | int, ...]) -> None:
    kept = [without(FIRST, *path), *((TEXT, LAST) if path[-1] == "role" else (without(c, *path) for c in (TEXT, LAST)))]
    seen = chunks(relay().feed(stream(*kept, USAGE, DONE)))
    assert {chunk["object"] for chunk in seen} == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in seen} == {"m"}
    assert len({(chunk["id"], chunk["created"]) for chunk in seen}) == 1
    assert seen[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(choice["delta"].get("content") or "" for chunk in seen for choice in chunk["choices"]) == "a"


def test_a_chunk_that_is_wrong_in_the_middle_of_sound_ones_is_repaired() -> None:
    odd = {**TEXT, "id": "another", "created": 7.5, "model": "adapter-x"}
    seen = chunks(relay().feed(stream(FIRST, TEXT, TEXT) + stream(odd) + stream(TEXT, LAST, USAGE, DONE)))
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in seen} == {("chatcmpl-1", 7, "m")}


def test_the_usage_chunk_has_a_list_of_choices() -> None:
    seen = chunks(relay().feed(stream(FIRST, TEXT, LAST, without(USAGE, "choices"), DONE)))
    assert seen[-1]["choices"] == []
    assert seen[-1]["usage"]["total_tokens"] == 4


@pytest.mark.parametrize("asked", [True, False])
def test_usage_that_the_engine_leaves_out_is_estimated(asked: bool) -> None:
    passing = relay(include_usage=asked)
    seen = chunks(passing.feed(stream(FIRST, TEXT, TEXT, LAST, DONE)))
    assert passing.usage == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert ("usage" in seen[-1]) == asked


def test_a_finish_reason_that_never_came_is_stop_or_tool_calls() -> None:
    *_, last, usage = chunks(relay().feed(stream(FIRST, TEXT, USAGE, DONE)))
    assert (last["choices"][0]["finish_reason"], usage["choices"]) == ("stop", [])  # the usage is the end
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tools = {**HEAD, "choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}
    seen = chunks(relay().feed(stream(FIRST, tools, DONE)))
    assert [choice["finish_reason"] for chunk in seen for choice in chunk["choices"]][-1] == "tool_calls"


@pytest.mark.parametrize(("given", "right"), [("max_tokens", "length"), ("eos_token", "stop"), ("length", "length")])
def test_other_words_for_finish_reasons(given: str, right: str) -> None:
    last = {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": given}]}
    assert chunks(relay().feed(stream(FIRST, TEXT, last, USAGE, DONE)))[-2]["choices"][0]["finish_reason"] == right


def test_an_answer_that_the_engine_aborted_is_an_error() -> None:
    last = {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}
    passing = relay()
    passing.feed(stream(FIRST, TEXT, last, DONE))
    assert passing.error is not None
    assert "abort" in passing.error.message
    assert not passing.done


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_events_are_read_by_their_fields(end: str) -> None:
    line = end[: len(end) // 2]
    sent = f": hello{end}".encode()
    for chunk in (FIRST, TEXT, LAST, USAGE):
        sent += f"event: message{line}id: 4{line}data:{json.dumps(chunk)}{end}".encode()
    passing = relay()
    seen = chunks(passing.feed(sent + f"id: 5{line}data: [DONE]{end}".encode()))
    assert len(seen) == 4
    assert passing.done


def test_a_stream_without_done_is_complete_once_every_answer_has_ended() -> None:
    passing = relay()
    out = passing.feed(stream(FIRST, TEXT, LAST))
    assert not passing.done
    seen = chunks(out + passing.feed(b""))
    assert passing.done
    assert seen[-1]["usage"]["completion_tokens"] == 1


def test_a_done_without_the_blank_line_after_it_counts() -> None:
    passing = relay()
    out = passing.feed(stream(FIRST, TEXT, LAST, USAGE) + b"data: [DONE]\n")
    chunks(out + passing.feed(b""))
    assert passing.done


def test_a_stream_that_ends_before_all_answers_is_not_complete() -> None:
    passing = relay(n=2)
    passing.feed(stream(FIRST, TEXT, LAST))
    assert passing.feed(b"") == b""
    assert not passing.done


def test_comments_and_empty_role_chunks_are_not_the_first_token() -> None:
    passing = relay()
    assert passing.feed(b": ping\n\n") == b""
    assert not passing.begun
    passing.feed(stream(FIRST))
    assert (passing.begun, passing.content_begun) == (True, False)
    passing.feed(stream(TEXT))
    assert passing.content_begun


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["content", "role", "x"]), inner),
    max_leaves=4,
)
CHOICE_FIELDS = st.sampled_from(["index", "delta", "message", "finish_reason", "logprobs"])
CHUNKS = st.dictionaries(st.sampled_from(["id", "object", "created", "model", "choices", "usage"]), VALUES) | st.builds(
    lambda head, choice: {**head, "choices": [choice]},
    st.dictionaries(st.sampled_from(["id", "created", "usage"]), VALUES),
    st.dictionaries(CHOICE_FIELDS, VALUES) | VALUES,
)


@example(chunk={"choices": [{"index": 0, "delta": {}, "finish_reason": ["stop"]}]})
@example(chunk={"created": 1e300, "choices": []})
@settings(max_examples=500)
@given(chunk=CHUNKS)
def test_no_shape_of_an_engines_values_breaks_the_gateway(chunk: dict[str, Any]) -> None:
    passing = relay()
    passing.feed(stream(chunk, LAST, DONE))
    assert passing.done or passing.error is not None
    with suppress(ApiError):
        read_completion(json.dumps(chunk).encode(), normaliser=Normaliser("r1", "m"))


def test_a_whole_answer_is_what_strict_clients_read() -> None:
    payload: dict[str, Any] = {"choices": [{"message": {"content": "abcd efgh"}}]}
    Normaliser("r1", "m", prompt_tokens=5).whole(payload)
    answer = ChatCompletion.model_validate(payload, strict=True)
    assert (answer.id, answer.model, answer.choices[0].finish_reason) == ("chatcmpl-r1", "m", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5 + 3


def test_a_whole_answer_that_was_broken_off_is_an_error() -> None:
    with pytest.raises(ApiError, match="finish_reason 'error'"):
        Normaliser("r1", "m").whole({"choices": [{"message": {"content": "a"}, "finish_reason": "error"}]})
