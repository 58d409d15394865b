"""Trace context goes through the gateway; with an OTLP endpoint, a receiver gets a request's spans."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.gateway.processes import Process, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask, picture

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def seen_by_engine(url: str, **headers: str) -> dict[str, str]:
    answer = httpx.post(url + CHAT, json={"model": "fake", "messages": ask("echo")}, headers=headers)
    echoed = json.loads(answer.json()["choices"][0]["message"]["content"])
    return {name.lower(): value for name, value in echoed["headers"].items()}


def test_trace_context_is_passed_on_as_it_came(gateway: Process) -> None:
    seen = seen_by_engine(gateway.url, traceparent=PARENT, tracestate="a=1,b=2")
    assert seen["traceparent"] == PARENT
    assert seen["tracestate"] == "a=1,b=2"
    until("the log has the trace", lambda: f'"trace_id":"{TRACE}"' in gateway.log())


@pytest.mark.parametrize(
    "parent",
    ["x", f"ff-{TRACE}-b7ad6b7169203331-01", f"00-{'0' * 32}-b7ad6b7169203331-01", PARENT.upper(), PARENT + "0"],
)
def test_invalid_trace_context_stays_here(gateway: Process, parent: str) -> None:
    seen = seen_by_engine(gateway.url, traceparent=parent, tracestate="a=1")
    assert not {"traceparent", "tracestate"} & set(seen)


class Receiver(ThreadingHTTPServer):
    """Takes OTLP/HTTP and keeps the spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def requests(receiver: Receiver) -> list[Span]:
    return receiver.named(f"POST {CHAT}")


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in request.resource_spans:
            named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            self.server.services.add(named["service.name"])
            self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def traced(engine: Process, receiver: Receiver) -> Iterator[Process]:
    endpoint = f"http://127.0.0.1:{receiver.server_address[1]}"
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with lensmith_serve("--engine", engine.url, **environment) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway


def test_a_request_is_a_span_below_the_clients_and_its_steps_are_below_it(traced: Process, receiver: Receiver) -> None:
    image = {"type": "image_url", "image_url": {"url": picture("PNG", (100, 50)), "detail": "low"}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "count 3"}]}]
    httpx.post(traced.url + CHAT, json={"model": "fake", "messages": messages}, headers={"traceparent": PARENT})
    (server,) = until("the request's span is there", lambda: requests(receiver))
    assert receiver.services == {"lensmith"}
    assert server.trace_id.hex() == TRACE
    assert server.parent_span_id.hex() == "b7ad6b7169203331"
    assert server.kind == Span.SPAN_KIND_SERVER
    values = {pair.key: pair.value for pair in server.attributes}
    assert values["gen_ai.request.model"].string_value == "fake"
    assert values["gen_ai.usage.output_tokens"].int_value == 3
    assert values["http.response.status_code"].int_value == 200
    assert values["lensmith.images"].int_value == 1
    assert "base64" not in str(server)
    below = {span.name: span for span in receiver.spans if span.parent_span_id == server.span_id}
    assert {"receive", "queue", "engine"} <= set(below)
    for span in below.values():
        assert server.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= server.end_time_unix_nano + 5_000_000


def test_the_engine_gets_the_span_that_calls_it_as_its_parent(traced: Process, receiver: Receiver) -> None:
    seen = seen_by_engine(traced.url)
    _, trace, parent, _ = seen["traceparent"].split("-")
    (called,) = until(
        "the engine's span is there", lambda: [s for s in receiver.named("engine") if s.span_id.hex() == parent]
    )
    assert called.trace_id.hex() == trace
    assert called.kind == Span.SPAN_KIND_CLIENT


def test_a_failure_of_the_engine_is_an_error_in_the_trace_and_a_clients_mistake_is_not(
    traced: Process, receiver: Receiver
) -> None:
    parents = [f"00-{n * 32}-{n * 16}-01" for n in "12"]
    for parent, text in zip(parents, ("fault status 500", "fault flat"), strict=True):
        body = {"model": "fake", "messages": ask(text)}
        httpx.post(traced.url + CHAT, json=body, headers={"traceparent": parent})
    for n, wanted in (("1", Status.STATUS_CODE_ERROR), ("2", Status.STATUS_CODE_UNSET)):
        (span,) = until(
            "it is there", lambda n=n: [s for s in receiver.named(f"POST {CHAT}") if s.trace_id.hex() == n * 32]
        )
        assert span.status.code == wanted


def test_nothing_is_lost_when_the_gateway_is_told_to_stop(engine: Process, receiver: Receiver) -> None:
    endpoint = f"http://127.0.0.1:{receiver.server_address[1]}/v1/traces"
    environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "mine"}
    with lensmith_serve("--engine", engine.url, **environment) as gateway:
        gateway.wait_until("/ready", 200)
        seen_by_engine(gateway.url)
    assert "mine" in receiver.services
