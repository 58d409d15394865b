"""Server-sent events, however the network cuts them."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.streaming.normalise import Normaliser
from gateway.streaming.relay import Frame, Relay
from gateway.streaming.sse import EVENT_LIMIT, EventBuffer, EventTooLong, split_events

ENDS = st.sampled_from([b"\n\n", b"\r\n\r\n"])
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def event(payload: Any, end: bytes = b"\n\n") -> bytes:
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + end


def chunk(text: str, **fields: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": {"content": text}}], **fields}


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


TEXTS = st.lists(st.text(max_size=30) | st.sampled_from(['"usage"', '"error"', "data: [DONE]\n\n", '{"error": 1}']))
CUTS = st.lists(st.integers(0, 10_000), max_size=20)


@given(texts=TEXTS, end=ENDS, cuts=CUTS)
def test_an_ordinary_stream_comes_out_byte_for_byte(texts: list[str], end: bytes, cuts: list[int]) -> None:
    stream = b"".join(event(chunk(text), end) for text in texts) + event(b"[DONE]", end)
    relay = Relay(include_usage=False)
    out = [relay.feed(piece) for piece in pieces(stream, cuts)]
    assert b"".join(out) == stream
    assert relay.done
    assert relay.error is None
    assert all(piece == b"" or piece.endswith(end) for piece in out), "only whole events are passed on"


@given(end=ENDS, cuts=CUTS, asked=st.booleans(), attached=st.booleans())
def test_usage_is_counted_and_passed_on_only_to_those_who_asked(
    end: bytes, cuts: list[int], asked: bool, attached: bool
) -> None:
    last = chunk("b", usage=USAGE) if attached else {"id": "x", "choices": [], "usage": USAGE}
    stream = event(chunk("a", usage=None), end) + event(last, end) + event(b"[DONE]", end)
    relay = Relay(include_usage=asked)
    out = b"".join(relay.feed(piece) for piece in pieces(stream, cuts))
    assert relay.usage == USAGE
    assert (b"prompt_tokens" in out) == asked
    assert (b'"b"' in out) == attached
    if asked:
        assert out == stream


@pytest.mark.parametrize(
    "failure",
    [{"error": {"message": "boom"}}, {"error": "boom"}, {"object": "error", "message": "boom", "error": None}],
)
@given(cuts=CUTS)
def test_an_error_event_ends_the_stream_and_is_not_passed_on(failure: dict[str, Any], cuts: list[int]) -> None:
    stream = event(chunk("a")) + event(failure) + event(chunk("NEVER")) + event(b"[DONE]")
    relay = Relay(include_usage=True)
    out = b""
    for piece in pieces(stream, cuts):
        out += relay.feed(piece)
        if relay.error is not None:
            break
    assert out == event(chunk("a"))
    assert relay.error is not None
    assert relay.error.message == "boom"
    assert not relay.done


def test_an_event_without_end_is_not_collected_for_ever() -> None:
    buffer = EventBuffer()
    assert buffer.feed(b"x" * EVENT_LIMIT) == b""
    with pytest.raises(EventTooLong):
        buffer.feed(b"x")


def test_nothing_after_done_is_passed_on() -> None:
    relay = Relay(include_usage=False)
    assert relay.feed(event(b"[DONE]") + event(chunk("NEVER"))) == event(b"[DONE]")


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda b: not set(b) & set(b"\r\n")), max_size=10), ENDS)
def test_events_are_split_at_blank_lines(lines: list[bytes], end: bytes) -> None:
    assert split_events(b"".join(line + end for line in lines)) == [line + end for line in lines]


def full_chunk(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> dict[str, Any]:
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}


ODD = (
    full_chunk({"content": "x"}, usage=None),
    full_chunk({"content": "x"}, usage=USAGE),
    full_chunk({"content": "x"}, model="other"),
    full_chunk({"content": "x"}, id="y"),
    full_chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
    full_chunk({"content": None}),
    full_chunk({"content": "x"}, "stop"),
    {"choices": [{"delta": {"content": "x"}}]},
    {"id": "x", "choices": []},
    {**full_chunk({"content": "x"}), "error": None},
    {"error": {"message": "m", "type": "t"}},
)
# The text between head and tail of an ordinary chunk, with what an engine must not hide there.
HIDDEN = (
    '"x"},"finish_reason":"stop"},{"delta":{"content":"y"',
    '"x"}}],"usage":{"prompt_tokens":9},"choices":[{"index":0,"delta":{"content":"y"',
    '"x"}}],"error":{"message":"m"},"choices":[{"index":0,"delta":{"content":"y"',
)
EVENTS = st.lists(
    st.text(max_size=9).map(lambda text: event(full_chunk({"content": text})))
    | st.sampled_from([*map(event, ODD), b": still there\n\n", b"event: x\n" + event(full_chunk({"content": "x"}))])
    | st.sampled_from(HIDDEN).map(
        lambda text: event(full_chunk({"content": "TEXT"})).replace(b'"TEXT"', text.encode())
    ),
    max_size=40,
)


@given(events=EVENTS, cuts=CUTS, asked=st.booleans(), compact=st.booleans())
def test_what_is_passed_on_unread_is_what_reading_it_would_have_given(
    events: list[bytes], cuts: list[int], asked: bool, compact: bool
) -> None:
    ordinary = [event(full_chunk({"role": "assistant", "content": "a"})), event(full_chunk({"content": "b"}))]
    usage = event({**full_chunk({}), "choices": [], "usage": USAGE})  # else it is estimated, more or less
    stream = b"".join([*ordinary, *events, event(full_chunk({}, "stop")), usage, event(b"[DONE]")])
    if compact:
        stream = stream.replace(b'": ', b'":').replace(b', "', b',"')

    def relayed(parts: list[bytes]) -> tuple[Any, ...]:
        relay = Relay(asked, normaliser=Normaliser("r", "m", prompt_tokens=5))
        out = b""
        for part in parts:
            if not relay.done and relay.error is None:
                out += relay.feed(part)
        return out, relay.done, relay.error and relay.error.message, relay.usage, relay.events

    with mock.patch.object(Frame, "of", return_value=None):  # every event is read
        read = relayed([stream])
    for parts in ([stream], split_events(stream), pieces(stream, [*cuts, len(b"".join(ordinary))])):
        assert relayed(parts) == read


def test_chunks_in_any_order_of_their_keys_are_passed_on_at_once() -> None:
    """As llama.cpp and transformers write them: a pattern that tries every way to match these never comes back."""
    head = {
        "id": "a",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        **dict.fromkeys("pqrstuvwxyz", "x"),
    }
    chunks = [{**head, "choices": [{"delta": {"content": "hi"}, "finish_reason": None, "index": 0}]}]
    chunks += [{"choices": [{"finish_reason": "stop", "index": 0, "delta": {}}], **head}]
    stream = "".join(f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    program = (
        "import sys; from gateway.streaming.normalise import Normaliser; from gateway.streaming.relay import Relay; "
        "relay = Relay(True, normaliser=Normaliser('a', 'm', 1, 0, True)); "
        "sys.stdout.buffer.write(relay.feed(sys.stdin.buffer.read()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=stream.encode(), capture_output=True, timeout=60, check=True
    )
    assert b'"content":"hi"' in done.stdout
    assert done.stdout.endswith(b"data: [DONE]\n\n")


def test_chunks_that_were_passed_on_unread_count_for_the_estimate_of_an_engine_that_does_not() -> None:
    relay = Relay(include_usage=False, normaliser=Normaliser("r", "m", prompt_tokens=5))
    for _ in range(100):
        relay.feed(event(full_chunk({"content": "a"})))
    relay.feed(event(full_chunk({}, "stop")) + event(b"[DONE]"))
    assert relay.usage["completion_tokens"] == 100
