"""What is left of a request when it is over: its figures in the metrics, a line in the log, its span."""

from __future__ import annotations

import sys

import orjson

from gateway.call import Call
from gateway.metrics import Metrics


def account(call: Call, metrics: Metrics) -> None:
    child = metrics.child
    child(metrics.requests, call.model, str(call.status)).inc()
    child(metrics.request_seconds, call.model).observe(call.since())
    if call.reason:
        child(metrics.rejections, call.reason).inc()
    if call.first_token is not None:
        child(metrics.first_token_seconds, call.model).observe(call.first_token)
    child(metrics.prompt_tokens, call.model).inc(call.prompt_tokens)
    child(metrics.generation_tokens, call.model).inc(call.generation_tokens)
    for attempt in call.attempts:
        child(metrics.upstream_requests, attempt.engine, attempt.outcome).inc()
        child(metrics.upstream_seconds, attempt.engine).observe(attempt.ended - attempt.started)
        if attempt.answered is not None:
            child(metrics.upstream_first_byte, attempt.engine).observe(attempt.answered - attempt.started)
    call.trace.end(call.steps, call.attributes(), call.reason if call.status >= 500 else "")
    # Not through `logging`, which costs more than everything else here.
    sys.stderr.write(orjson.dumps(call.line()).decode() + "\n")
