"""Reads an engine's whole (not streamed) answer."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.errors import ApiError, engine_error
from gateway.streaming.logprobs import RawLogProbs
from gateway.streaming.normalise import Normaliser
from gateway.streaming.stops import Stops


def read_completion(
    answer: bytes,
    stops: Stops | None = None,
    log_probs: RawLogProbs | None = None,
    normaliser: Normaliser | None = None,
) -> tuple[bytes, dict[str, Any]]:
    """A whole answer, rewritten as a stream's chunks are, and its usage. Raises ApiError 502 if it is no completion."""
    payload = read_json(answer)
    if not isinstance(payload, dict) or not isinstance(payload.get("choices"), list):
        raise ApiError(502, "The engine's answer is not a completion.", code="engine_error")
    if normaliser is not None:
        normaliser.whole(payload)
    if log_probs is not None:
        log_probs.apply(payload)
    if stops is not None:
        stops.cut_answer(payload)
    if stops is not None or log_probs is not None or (normaliser is not None and normaliser.repaired):
        answer = orjson.dumps(payload)
    usage = payload.get("usage")
    return answer, usage if isinstance(usage, dict) else {}


def read_json(answer: bytes) -> Any:
    """An engine's answer. Raises ApiError for one that is no JSON or holds an error."""
    try:
        payload = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise ApiError(502, "The engine's answer is not valid JSON.", code="engine_error") from None
    failure = engine_error(payload, status_inside(payload))
    if failure is not None:
        raise failure
    return payload


def status_inside(payload: Any) -> int:
    """The status that an error answered with HTTP 200 carries in its `code`, as LMDeploy's do; 502 if it has none."""
    error = payload.get("error", payload) if isinstance(payload, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 502
