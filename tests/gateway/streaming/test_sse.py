"""Single server-sent events: where they end, what they hold, and those that the gateway writes itself."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import ApiError
from gateway.streaming.relay import Relay
from gateway.streaming.sse import EventBuffer, error_event, event, event_data, split_events
from gateway.streaming.stops import Stops


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
def test_an_event_is_given_back_with_the_last_byte_of_its_end(end: bytes) -> None:
    buffer = EventBuffer()
    whole = b"data: 1" + end
    assert [buffer.feed(whole[at : at + 1]) for at in range(len(whole))] == [b""] * (len(whole) - 1) + [whole]
    assert buffer.feed(whole + whole + b"data") == whole + whole
    assert buffer.feed(b": 2" + end) == b"data: 2" + end
    assert split_events(whole + b"data: 2" + end) == [whole, b"data: 2" + end]


def test_an_event_without_its_blank_line_is_whole_once_the_stream_has_ended() -> None:
    buffer = EventBuffer()
    assert buffer.feed(b"data: 1\n\ndata: 2\n") == b"data: 1\n\n"
    assert buffer.end() == b"data: 2\n\n"
    assert buffer.end() == b"", "given back once"
    assert buffer.feed(b"data: 3\n\n") == b"data: 3\n\n"


@pytest.mark.parametrize(
    ("single", "data"),
    [
        (b'data: {"a": 1}\n\n', {"a": 1}),
        (b'data:{"a": 1}\r\n\r\n', {"a": 1}),
        (b'event: x\nid: 7\ndata: {"a":\ndata: 1}\n\n', {"a": 1}),
        (b": still working\n\n", None),
        (b"event: x\n\n", None),
        (b"data: [DONE]\n\n", None),
        (b"data: 12\ndata: 3\n\n", None),
        (b"data\n\n", None),
    ],
)
def test_the_data_of_an_event_is_the_json_of_its_data_lines(single: bytes, data: Any) -> None:
    assert event_data(single) == data


def test_what_the_gateway_writes_are_whole_events() -> None:
    assert event({"a": "é"}) == 'data: {"a":"é"}\n\n'.encode()
    error = ApiError(502, "The engine broke off.", code="engine_error")
    assert event_data(error_event(error)) == error.envelope()
    assert split_events(error_event(error)) == [error_event(error)]


def test_a_stream_that_a_stop_string_ends_has_its_end_mark() -> None:
    relay = Relay(include_usage=False, stops=Stops(["END"], n=1))
    out = relay.feed(event({"choices": [{"index": 0, "delta": {"content": "aEND"}}]}))
    assert out.endswith(b"\n\ndata: [DONE]\n\n")
    assert relay.done
