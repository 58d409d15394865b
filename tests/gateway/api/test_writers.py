"""Streams in the words of other APIs: however an engine cuts its answer, the pieces and the whole tell the same."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from gateway.api.ollama.writer import ChatWriter, GenerateWriter
from gateway.api.responses.writer import ResponseWriter
from gateway.api.translation import Writer, write_answer, write_events
from gateway.streaming.relay import Relay

TEXTS = st.lists(st.text(max_size=8), max_size=6)
# Whole numbers of 64 bits: larger ones become floats in our JSON reader, as in Ollama's own.
WHOLE = st.integers(-(2**63), 2**63 - 1)
CALLS = st.lists(st.tuples(st.text(min_size=1, max_size=5), st.lists(WHOLE, max_size=2)), max_size=2)
CUTS = st.lists(st.integers(0, 10_000), max_size=10)
ENDS = st.sampled_from([b"\n\n", b"\r\n\r\n"])
FINISH = st.sampled_from(["stop", "length"])
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def arguments_of(value: list[int]) -> str:
    return json.dumps({"value": value})


def chat_stream(texts: list[str], calls: list[Any], finish: str, end: bytes) -> bytes:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    for index, (name, value) in enumerate(calls):
        written = arguments_of(value)
        head = {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        pieces = [{"index": index, "function": {"arguments": piece}} for piece in (written[:5], written[5:])]
        deltas += [{"tool_calls": [piece]} for piece in (head, *pieces)]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({"choices": [], "usage": USAGE})
    events = [json.dumps({"id": "x", "object": "chat.completion.chunk", **chunk}).encode() for chunk in chunks]
    return b"".join(b"data: " + event + end for event in [*events, b"[DONE]"])


def chat_answer(texts: list[str], calls: list[Any], finish: str) -> bytes:
    made = [
        {"id": f"c{index}", "type": "function", "function": {"name": name, "arguments": arguments_of(value)}}
        for index, (name, value) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": "".join(texts) or None, **({"tool_calls": made} if made else {})}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"id": "x", "choices": [choice], "usage": USAGE}).encode()


def written(writer: Writer, stream: bytes, cuts: list[int]) -> bytes:
    """As the request path does it: through the relay, which gives whole events, into the writer."""
    relay = Relay(include_usage=True)
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return b"".join(write_events(writer, relay.feed(stream[start:end])) for start, end in pairwise(places))


def settled(response: dict[str, Any]) -> dict[str, Any]:
    """Without what is new in every response."""
    items = [{key: value for key, value in item.items() if key != "id"} for item in response["output"]]
    return {**response, "id": "", "created_at": 0, "completed_at": 0, "output": items}


@given(texts=TEXTS, calls=CALLS, finish=FINISH, end=ENDS, cuts=CUTS)
def test_a_responses_events_add_up_to_the_response(
    texts: list[str], calls: list[Any], finish: str, end: bytes, cuts: list[int]
) -> None:
    stream = written(ResponseWriter({"model": "m"}), chat_stream(texts, calls, finish, end), cuts)
    events = [json.loads(event.split(b"\ndata: ")[1]) for event in stream.split(b"\n\n")[:-1]]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    last = events[-1]["response"]
    Response.model_validate(last)
    whole = json.loads(write_answer(ResponseWriter({"model": "m"}), chat_answer(texts, calls, finish)))
    assert settled(last) == settled(whole)
    opened: dict[int, dict[str, Any]] = {}
    for event in events:
        kind, at = event["type"], event.get("output_index")
        if kind == "response.output_item.added":
            assert at == len(opened), "items come in order"
            opened[at] = {"text": "", "arguments": ""}
        elif kind == "response.output_text.delta":
            opened[at]["text"] += event["delta"]
        elif kind == "response.function_call_arguments.delta":
            opened[at]["arguments"] += event["delta"]
        elif kind == "response.output_item.done":
            item = event["item"]
            assert item == last["output"][at]
            told = item["content"][0]["text"] if item["type"] == "message" else item["arguments"]
            assert told == opened[at]["text"] + opened[at]["arguments"]
    assert len(opened) == len(last["output"]) >= 1


@given(texts=TEXTS, calls=CALLS, finish=FINISH, end=ENDS, cuts=CUTS)
def test_ollamas_lines_add_up_to_the_answer(
    texts: list[str], calls: list[Any], finish: str, end: bytes, cuts: list[int]
) -> None:
    lines = written(ChatWriter("m"), chat_stream(texts, calls, finish, end), cuts).split(b"\n")
    assert lines.pop() == b""
    parts = [json.loads(line) for line in lines]
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    whole = json.loads(write_answer(ChatWriter("m"), chat_answer(texts, calls, finish)))
    assert "".join(part["message"]["content"] for part in parts) == whole["message"]["content"] == "".join(texts)
    made = [call for part in parts for call in part["message"].get("tool_calls", [])]
    assert made == whole["message"].get("tool_calls", [])
    assert [(call["function"]["name"], call["function"]["arguments"]["value"]) for call in made] == calls
    for last in (parts[-1], whole):
        assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == (finish, 3, 2)


@given(texts=TEXTS, end=ENDS, cuts=CUTS)
def test_a_prompts_lines_add_up_to_the_answer(texts: list[str], end: bytes, cuts: list[int]) -> None:
    lines = written(GenerateWriter("m"), chat_stream(texts, [], "stop", end), cuts).splitlines()
    assert "".join(json.loads(line)["response"] for line in lines) == "".join(texts)
