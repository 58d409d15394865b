"""The gateway's log: what operators should know, as lines on stderr.

Every line is JSON for programs, and readable where a person looks on at a terminal. Requests have lines of their own;
all others are messages: `time`, `level`, `source` (this gateway, an engine or a library), `message`, and after a defect
a `traceback`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TextIO

import orjson
from starlette.types import Scope

from modelfiles import counted

GATEWAY = "lensmith"
ENGINES = f"{GATEWAY}.engines"  # the parent of each engine's own lines


def engine_log(engine: str) -> logging.Logger:
    """The logger of the lines that an engine's process writes."""
    return logging.getLogger(f"{ENGINES}.{engine}")


class _Formatter(logging.Formatter):
    """At a terminal `lensmith: message`, and of an engine's own lines `<engine>: message`."""

    def format(self, record: logging.LogRecord) -> str:
        if _is_terminal(sys.stderr):
            return f"{_source(record)}: {super().format(record)}"
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "source": _source(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def _source(record: logging.LogRecord) -> str:
    """Who says it: `lensmith`, an engine's name, or the library's."""
    if record.name.startswith(f"{ENGINES}."):
        return record.name.removeprefix(f"{ENGINES}.")
    return record.name.split(".")[0]


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
    write_line(line)


def write_line(line: Mapping[str, Any]) -> None:
    """A request's line. Not through `logging`, which costs more than the rest of its account."""
    text = readable(line) if _is_terminal(sys.stderr) else orjson.dumps(line).decode()
    sys.stderr.write(text + "\n")


@lru_cache(maxsize=1)
def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def readable(line: Mapping[str, Any]) -> str:
    """As in `14:03:05 200 /v1/chat/completions qwen alice, 1 image, 812 + 35 tokens, first after 0.21 s, 1.34 s`."""
    who = [line["path"], line["model"], line["key"] or ""]
    parts = [" ".join(word for word in who if word and word != "unknown")]
    if line.get("images"):
        parts.append(counted(line["images"], "image"))
    if line.get("generation_tokens"):
        parts.append(f"{line['prompt_tokens']} + {line['generation_tokens']} tokens")
    if line.get("first_token_seconds") is not None:
        parts.append(f"first after {line['first_token_seconds']:.2f} s")
    if "seconds" in line:
        parts.append(f"{line['seconds']:.2f} s")
    if line["outcome"] != "ok":
        parts.append(f"{line['outcome']} ({line['request_id']})")
    when = time.strftime("%H:%M:%S", time.localtime(line["time"]))
    return f"{when} {line['status']} {', '.join(parts)}"
