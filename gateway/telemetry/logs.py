"""The gateway's log: what operators should know, as lines on stderr.

Requests have their own lines, which `gateway/proxy/call.py` writes as JSON.
"""

from __future__ import annotations

import logging
import sys
import time

import orjson
from starlette.types import Scope

GATEWAY = "lensmith"
ENGINES = f"{GATEWAY}.engines"  # the parent of each engine's own lines


def engine_log(engine: str) -> logging.Logger:
    """The logger of the lines that an engine's process writes."""
    return logging.getLogger(f"{ENGINES}.{engine}")


class _Formatter(logging.Formatter):
    """`lensmith: message`; of an engine's own lines `<engine>: message`; of libraries only the message."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        if record.name.startswith(f"{ENGINES}."):
            return f"{record.name.removeprefix(f'{ENGINES}.')}: {message}"
        return f"{GATEWAY}: {message}" if record.name.split(".")[0] == GATEWAY else message


def configure_logging() -> None:
    """Log the gateway's and engines' lines, and libraries' warnings, to stderr. Does nothing when called again."""
    root = logging.getLogger()
    if any(isinstance(handler.formatter, _Formatter) for handler in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(GATEWAY).setLevel(logging.INFO)


def log_refusal(scope: Scope, status: int, reason: str) -> None:
    """The line of a request that was refused before its account began, with the fields that all lines share."""
    line = {
        "time": round(time.time(), 3),
        "request_id": scope.get("request_id"),
        "path": scope["path"],
        "key": None,
        "model": "unknown",
        "status": status,
        "outcome": reason,
    }
    sys.stderr.write(orjson.dumps(line).decode() + "\n")
