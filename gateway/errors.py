"""Errors as the client sees them: OpenAI's envelope, one status and one metric label each."""

from __future__ import annotations

import re
from typing import Any

import orjson

# Longest message that leaves the gateway; an engine may put a whole request body into its own.
MESSAGE_LIMIT = 2000


ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An answer other than success.

    `reason` is the label of `lensmith_rejections_total`: the code, unless that came from an engine, whose codes may be
    any number of strings. `retry_after` is in seconds. `retryable` and `unreachable` are as in `engine_lost`.
    """

    retryable = False
    unreachable = False

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        reason: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= MESSAGE_LIMIT else message[:MESSAGE_LIMIT] + "…"
        self.code = code
        self.reason = reason or code
        self.param = param
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, round(retry_after)))

    def envelope(self) -> dict[str, Any]:
        """OpenAI's error object: https://platform.openai.com/docs/guides/error-codes."""
        error = {"message": self.message, "type": error_type(self.status), "param": self.param, "code": self.code}
        return {"error": error}

    def body(self) -> bytes:
        return orjson.dumps(self.envelope())

    def anthropic_body(self) -> bytes:
        """Anthropic's: https://docs.anthropic.com/en/api/errors."""
        kind = ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": self.message}})

    def ollama_body(self) -> bytes:
        """Ollama's: https://github.com/ollama/ollama/blob/main/docs/api.md."""
        return orjson.dumps({"error": self.message})


def engine_lost(
    status: int,
    message: str,
    code: str = "engine_error",
    *,
    retryable: bool = True,
    unreachable: bool = False,
    retry_after: float | None = None,
) -> ApiError:
    """No whole answer came from the engine.

    `retryable`: another one may be asked. `unreachable`: it refused the connection or was silent, which no request
    causes.
    """
    error = ApiError(status, message, code=code, retry_after=retry_after)
    error.retryable, error.unreachable = retryable, unreachable
    return error


def error_type(status: int) -> str:
    """OpenAI's `type` for an HTTP status."""
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def crashed() -> ApiError:
    """A defect of ours, whose traceback goes to the log."""
    return ApiError(500, "The gateway failed; its log says why.", code="internal_error")


def bad_request(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)


# How vLLM answers everybody when its engine's process has ended; its server ends a moment later.
ENGINE_DEAD = "EngineCore encountered an issue"
# Statuses of an engine that mean the same to our client.
KEPT = {400, 404, 408, 409, 413, 415, 422, 429, 500, 501, 502, 503, 504}


def normalise(status: int, body: bytes, retry_after: str | None = None) -> ApiError:
    """Turn an engine's error answer into ours. Its status is kept where it says something to the client."""
    try:
        error = engine_error(orjson.loads(body), status)
    except orjson.JSONDecodeError:
        error = None
    if error is None:
        # HTML from a proxy, an empty body: nothing in it is meant for our client.
        kept = status if status in (429, 502, 503, 504) else 502
        error = ApiError(kept, f"The engine answered HTTP {status} without an explanation.", code="engine_error")
    elif status in (401, 403):
        # The client's key is never forwarded, so the key that was refused is the gateway's own.
        error = ApiError(502, "The engine refused the gateway's own key.", code="engine_error")
    if status in (502, 503):  # whatever stands there, no engine has worked on the request
        error.retryable = True
    if retry_after is not None and error.status in (429, 503):
        error.headers["retry-after"] = retry_after
    return error


def engine_error(payload: object, status: int = 502) -> ApiError | None:
    """The error inside an engine's JSON, if that JSON is one, in any of the shapes that engines use.

    OpenAI: `{"error": {"message", ...}}`; LMDeploy: `{"object": "error", "message", ...}`; FastAPI: `{"detail": ...}`;
    others: `{"error": "text"}`, and a list that holds one of these.
    """
    if isinstance(payload, list) and payload:
        payload = payload[0]
    if not isinstance(payload, dict):
        return None
    found = payload.get("error")
    if isinstance(found, str):
        found = {"message": found}
    elif not isinstance(found, dict):
        if payload.get("object") == "error":
            found = payload
        elif set(payload) == {"detail"}:
            found = {"message": _detail(payload["detail"])}
        else:
            return None
    message, param, code = (found.get(key) for key in ("message", "param", "code"))
    kept = status if status in KEPT else 502
    if not (isinstance(message, str) and message):
        message = "The engine failed without saying why."
    if message.startswith(ENGINE_DEAD):
        return engine_lost(502, "The engine failed while it worked on the request.")
    fallback = "engine_error" if kept >= 500 else "engine_refused"
    reason = fallback
    if kept == 400 and re.search("context (?:length|size)", message, re.IGNORECASE):
        # Clients shorten their prompt on this code; LMDeploy and llama.cpp send the sentence without it.
        fallback, param = "context_length_exceeded", param or "messages"
    return ApiError(
        kept,
        message,
        code=code if isinstance(code, str) and code else fallback,
        reason=reason,
        param=param if isinstance(param, str) else None,
    )


def _detail(detail: object) -> str:
    """FastAPI's validation errors: the first one's place and message, without the input it quotes."""
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        where = ".".join(str(part) for part in detail[0].get("loc", ()) if part != "body")
        return f"{where}: {detail[0].get('msg', 'invalid')}"
    return detail if isinstance(detail, str) else ""
