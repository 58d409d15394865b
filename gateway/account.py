"""What is left of a request when it is over: its figures in the metrics, a line in the log, its span."""

from __future__ import annotations

import sys

import orjson

from gateway.call import Call
from gateway.metrics import Metrics


def account(call: Call, metrics: Metrics) -> None:
    metrics.requests.labels(call.model, str(call.status)).inc()
    metrics.request_seconds.labels(call.model).observe(call.since())
    if call.reason:
        metrics.rejections.labels(call.reason).inc()
    if call.first_token is not None:
        metrics.first_token_seconds.labels(call.model).observe(call.first_token)
    metrics.prompt_tokens.labels(call.model).inc(call.prompt_tokens)
    metrics.generation_tokens.labels(call.model).inc(call.generation_tokens)
    for attempt in call.attempts:
        metrics.upstream_requests.labels(attempt.engine, attempt.outcome).inc()
        metrics.upstream_seconds.labels(attempt.engine).observe(attempt.ended - attempt.started)
        if attempt.answered is not None:
            metrics.upstream_first_byte.labels(attempt.engine).observe(attempt.answered - attempt.started)
    call.trace.end(call)
    # Not through `logging`, which costs more than everything else here.
    sys.stderr.write(orjson.dumps(call.line()).decode() + "\n")
