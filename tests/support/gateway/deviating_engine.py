"""An engine that deviates from OpenAI's API in every way that clients were seen to meet.

Each way is a model of its own. The right answer is "Hello world", with 7 + 2 tokens.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Object = dict[str, Any]
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
HEAD = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "some-model"}


def whole() -> Object:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello world"}, "finish_reason": "stop"}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}


def chunks() -> list[Object]:
    deltas: list[tuple[Object, str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": "Hello"}, None), ({"content": " world"}, None), ({}, "stop")]
    head = {**HEAD, "object": "chat.completion.chunk"}
    made = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": reason}]} for d, reason in deltas]
    return copy.deepcopy([*made, {**head, "choices": [], "usage": USAGE}])


def event(payload: Object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def keep(answer: Object) -> None:
    """Nothing to change."""


@dataclass(frozen=True)
class Deviation:
    """each: changes a whole answer and every chunk of a stream; stream: the stream's chunks; wire: its bytes, in the
    pieces that are sent; refusal: (status, content type, body) in place of an answer. fault: what a client must be told
    of answers and streams, or of streams alone with `streams_only`; empty if it must not notice anything.
    """

    each: Callable[[Object], object] = keep
    stream: Callable[[list[Object]], list[Object]] = lambda made: made
    wire: Callable[[bytes], list[bytes]] = lambda data: [data]
    refusal: tuple[int, str, bytes] | None = None
    content_type: str = "text/event-stream"
    until_close: bool = False
    fault: str = ""
    streams_only: bool = False


def without(name: str) -> Deviation:
    return Deviation(lambda answer: answer.pop(name, None))


def with_value(name: str, value: object) -> Deviation:
    return Deviation(lambda answer: answer.update({name: value}))


def in_choices(change: Callable[[Object], object]) -> Deviation:
    return Deviation(lambda answer: [change(choice) for choice in answer["choices"]])


def in_texts(change: Callable[[Object], object]) -> Deviation:
    return in_choices(lambda choice: change(choice.get("message", choice.get("delta"))))


def finish(value: object) -> Deviation:
    return in_choices(lambda choice: choice["finish_reason"] and choice.update(finish_reason=value))


def replaced(old: bytes, new: bytes) -> Deviation:
    return Deviation(wire=lambda data: [data.replace(old, new)])


def in_each(fields: Object) -> Callable[[list[Object]], list[Object]]:
    return lambda made: [{**chunk, **fields} for chunk in made]


def joined(made: list[Object]) -> list[Object]:
    made[2]["choices"][0]["finish_reason"] = "stop"  # beside the last text
    return [*made[:3], made[4]]


def refused(status: int, payload: object, fault: str) -> Deviation:
    return Deviation(refusal=(status, "application/json", json.dumps(payload).encode()), fault=fault)


LONG = "prompt exceeds the context length"
FLAT = {"object": "error", "message": LONG, "type": "invalid_request_error", "param": None, "code": 400}
DETAIL = {"detail": [{"loc": ["body", "n"], "msg": LONG, "type": "value_error", "input": "x"}]}
HTML = b"<html><body>Bad gateway</body></html>"
EMPTY_FIRST = {**HEAD, "object": "chat.completion.chunk", "choices": [], "prompt_filter_results": []}
NULL = {**HEAD, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": None}}]}

DEVIATIONS: dict[str, Deviation] = {
    "none": Deviation(),
    "no-id": without("id"),
    "no-object": without("object"),
    "no-created": without("created"),
    "no-model": without("model"),
    "no-usage": without("usage"),
    "null-id": with_value("id", None),
    "float-created": with_value("created", 1_700_000_000.5),
    "text-created": with_value("created", "now"),
    "wrong-object": with_value("object", "completion"),
    "extra-fields": with_value("system_notes", [{"a": 1}]),
    "no-index": in_choices(lambda choice: choice.pop("index")),
    "text-index": in_choices(lambda choice: choice.update(index="0")),
    "no-role": in_texts(lambda text: text.pop("role", None)),
    "role-everywhere": in_texts(lambda text: text.update(role="assistant")),
    "no-finish": in_choices(lambda choice: choice.pop("finish_reason")),
    "null-finish": finish(None),
    "empty-finish": finish(""),
    "own-finish": finish("eos_token"),
    "number-finish": finish(2),
    "finish-beside-text": Deviation(stream=joined),
    "usage-without-choices": Deviation(stream=lambda made: [*made[:4], {"usage": USAGE}]),
    "usage-everywhere": Deviation(stream=in_each({"usage": USAGE})),
    "null-usage-everywhere": Deviation(stream=lambda made: [*in_each({"usage": None})(made[:4]), made[4]]),
    "empty-choices-first": Deviation(stream=lambda made: [EMPTY_FIRST, *made]),
    "null-content": Deviation(stream=lambda made: [made[0], NULL, *made[1:]]),
    "null-delta": Deviation(stream=lambda made: [*made[:3], {**made[3], "choices": [
        {"index": 0, "delta": None, "finish_reason": "stop"}]}, made[4]]),
    "no-done": replaced(b"data: [DONE]\n\n", b""),
    "crlf": replaced(b"\n", b"\r\n"),
    "no-space": replaced(b"data: ", b"data:"),
    "comments": replaced(b"data: {", b": ping\n\ndata: {"),
    "event-and-id": replaced(b"data: ", b"event: message\nid: 7\ndata: "),
    "byte-by-byte": Deviation(wire=lambda data: [data[at : at + 1] for at in range(len(data))]),
    "event-by-event": Deviation(wire=lambda data: [piece + b"\n\n" for piece in data.split(b"\n\n")[:-1]]),
    "until-close": Deviation(until_close=True),
    "charset": Deviation(content_type="text/event-stream; charset=utf-8"),
    "stream-called-bytes": Deviation(content_type="application/octet-stream"),
    "stream-called-text": Deviation(content_type="text/plain"),
    "stream-called-json": Deviation(
        content_type="application/json", fault="The engine's answer is not valid JSON", streams_only=True
    ),
    "cut-short": Deviation(
        wire=lambda data: [data[: data.index(b" world")]], fault="ended before it was complete", streams_only=True
    ),
    "error-detail": refused(422, DETAIL, LONG),
    "error-detail-text": refused(400, {"detail": LONG}, LONG),
    "error-text": refused(400, {"error": LONG}, LONG),
    "error-flat": refused(400, FLAT, LONG),
    "error-html": Deviation(refusal=(500, "text/html", HTML), fault="engine"),
    "error-empty": Deviation(refusal=(500, "text/plain", b""), fault="engine"),
    "error-flat-with-200": refused(200, FLAT, LONG),
    "error-text-with-200": refused(200, {"error": LONG}, LONG),
    "html-with-200": Deviation(refusal=(200, "text/html", HTML), fault="engine"),
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in DEVIATIONS]
        found = self.path == "/v1/models"
        self.send(200 if found else 404, "application/json", json.dumps({"object": "list", "data": models}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        deviation = DEVIATIONS[request["model"]]
        if deviation.refusal is not None:
            self.send(*deviation.refusal)
        elif request.get("stream"):
            self.stream(deviation)
        else:
            answer = copy.deepcopy(whole())
            deviation.each(answer)
            self.send(200, "application/json", json.dumps(answer).encode())

    def stream(self, deviation: Deviation) -> None:
        made = deviation.stream(chunks())
        for chunk in made:
            if "choices" in chunk:
                deviation.each(chunk)
        if not any(chunk.get("usage") for chunk in made):
            made = [chunk for chunk in made if chunk["choices"]]
        self.send_response(200)
        self.send_header("content-type", deviation.content_type)
        self.send_header("connection" if deviation.until_close else "transfer-encoding", "close" if
                         deviation.until_close else "chunked")  # fmt: skip
        self.end_headers()
        for piece in deviation.wire(b"".join(map(event, made)) + b"data: [DONE]\n\n"):
            if deviation.until_close:
                self.wfile.write(piece)
            elif piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if deviation.until_close:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments: object) -> None:
        pass


class DeviatingEngine:
    """The engine in a thread, at `url`."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> DeviatingEngine:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
