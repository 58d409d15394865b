"""What Ollama makes of a Modelfile's commands: the body of POST /api/create, with every value checked and typed.

Follows CreateRequest in Ollama's parser/parser.go and FormatParams in api/types.go, messages included.
"""

from __future__ import annotations

import re
from math import inf
from typing import Any

from modelfiles.language.grammar import Command

INTEGERS = (
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_keep", "seed", "num_predict",
    "top_k", "repeat_last_n",
)  # fmt: skip
FLOATS = ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty")
PARAMETERS = (*INTEGERS, *FLOATS, "use_mmap", "stop")
# Ollama warns about these and drops them.
DEPRECATED = (
    "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau",
    "mirostat_eta",
)  # fmt: skip

_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity)|nan", re.ASCII | re.IGNORECASE)
_SEMVER = re.compile(r"v(0|[1-9]\d*)(\.(0|[1-9]\d*)(\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?)?)?", re.ASCII)
_MAX_FLOAT32 = 3.4028235677973366e38  # the largest number that still rounds to a finite float32


class RequestError(ValueError):
    """Ollama's client refuses the commands; the message is its own. `command` is the culprit."""

    def __init__(self, message: str, command: Command) -> None:
        super().__init__(message)
        self.command = command


def create_request(commands: list[Command]) -> dict[str, Any]:
    """The request but for local files: every FROM counts as a model's name. Raises RequestError."""
    request: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for command in commands:
        name, args = command.pair
        if name == "model":
            request["from"] = args
        elif name in ("template", "system", "renderer", "parser"):
            request[name] = args
        elif name == "license":
            request.setdefault("license", []).append(args)
        elif name == "requires":
            version = args if args.startswith("v") else f"v{args}"
            if not _SEMVER.fullmatch(version):
                raise RequestError("requires must be a valid semver (e.g. 0.14.0)", command)
            request["requires"] = version[1:]
        elif name == "message":
            role, _, content = args.partition(": ")
            request.setdefault("messages", []).append({"role": role, "content": content})
        elif name == "stop":
            parameters.setdefault("stop", []).append(args)
        elif name not in (*DEPRECATED, "adapter", "draft"):
            parameters[name] = parameter_value(command)
    request["parameters"] = parameters
    return {key: value for key, value in request.items() if value}


def parameter_value(command: Command) -> int | float | bool:
    """A parameter's value in its type. Raises RequestError."""
    name, text = command.pair
    if name in INTEGERS:
        if re.fullmatch(r"[+-]?[0-9]+", text) and len(text) <= 20 and -(2**63) <= int(text) < 2**63:
            return int(text)
        raise RequestError(f"invalid int value [{text}]", command)
    if name in FLOATS:
        if _FLOAT.fullmatch(text) and (abs(float(text)) <= _MAX_FLOAT32 or abs(float(text)) == inf or text == "nan"):
            return float(text)
        raise RequestError(f"invalid float value [{text}]", command)
    if name == "use_mmap":
        if text in ("1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"):
            return text in ("1", "t", "T", "TRUE", "true", "True")
        raise RequestError(f"invalid bool value [{text}]", command)
    raise RequestError(f"unknown parameter '{name}'", command)
