"""Spans of requests, sent by OpenTelemetry's SDK over OTLP/HTTP. Needs the extra `otel`; imported where configured.

A request is a server span; its steps and its calls to engines are spans below it. The steps are written when the
request is over, from the times in its account, so that tracing costs little while it runs.
"""

from __future__ import annotations

import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from gateway.telemetry.tracing import Attributes, Steps, Trace, Tracing, incoming

PROPAGATOR = TraceContextTextMapPropagator()


class OtelTracing(Tracing):
    def __init__(self) -> None:
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before our name, and that before the SDK's.
        named = Resource({"service.name": "lensmith"}).merge(OTELResourceDetector().detect())
        resource = Resource.create().merge(named)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("lensmith")

    def begin(self, scope: Scope) -> Trace:
        return OtelTrace(self._tracer, incoming(scope), scope["path"])

    def close(self) -> None:
        self._provider.shutdown()


class OtelTrace(Trace):
    def __init__(self, tracer: Tracer, carrier: dict[str, str], path: str) -> None:
        super().__init__(carrier)
        self._tracer = tracer
        self._began = time.time_ns()
        self._span = tracer.start_span(
            f"POST {path}", PROPAGATOR.extract(carrier), kind=SpanKind.SERVER, start_time=self._began
        )
        self._context = set_span_in_context(self._span)
        self._engine_span: Span | None = None

    @property
    def trace_id(self) -> str | None:
        return f"{self._span.get_span_context().trace_id:032x}"

    def call_engine(self, engine: str) -> dict[str, str]:
        self._engine_span = self._tracer.start_span("engine", self._context, kind=SpanKind.CLIENT)
        self._engine_span.set_attribute("lensmith.engine", engine)
        headers: dict[str, str] = {}
        PROPAGATOR.inject(headers, set_span_in_context(self._engine_span))
        return headers

    def called_engine(self, outcome: str) -> None:
        if self._engine_span is not None:
            _finish(self._engine_span, "" if outcome == "ok" else outcome)
            self._engine_span = None

    def end(self, steps: Steps, attributes: Attributes, failure: str) -> None:
        if self._span.is_recording():
            for name, (start, end) in steps.items():
                step = self._tracer.start_span(name, self._context, start_time=self._at(start))
                step.end(self._at(end))
            self._span.set_attributes(attributes())
        _finish(self._span, failure)

    def _at(self, seconds: float) -> int:
        return self._began + int(seconds * 1e9)


def _finish(span: Span, failure: str) -> None:
    if failure:
        span.set_status(StatusCode.ERROR, failure)
        span.set_attribute("error.type", failure)
    span.end()
