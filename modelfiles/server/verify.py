"""Proves on a live Ollama that a model does what its Modelfile says: it sees, holds its images, gets its prompt."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from modelfiles.folder.model_folder import ModelFolder
from modelfiles.language.grammar import Command
from modelfiles.ollama.prompts import CASES, IMAGE, Conversation, render_folder
from modelfiles.ollama.versions import LLAMA_SERVER, Version, parse_version, version_text
from modelfiles.server.client import OllamaClient, OllamaError

IMAGE_TAG = re.compile(r"\[img-\d+\]")
SAME = 1e-6  # log-probabilities closer than this are the same


@dataclass(frozen=True)
class Check:
    """One thing that was asked of the server, whether it held, and what was seen."""

    name: str
    ok: bool
    seen: str


def verify(server: OllamaClient, model: str, commands: list[Command], folder: ModelFolder | None) -> Iterator[Check]:
    """Runs the checks one by one. `folder` gives the chat template to compare prompts with. Raises OllamaError."""
    version = server.version()
    needed = next((command.args for command in commands if command.name == "requires"), "")
    yield Check("version", not needed or version >= parse_version(needed), version_text(version))
    shown = server.show(model)
    capabilities = shown.get("capabilities") or []
    yield Check("sees images", "vision" in capabilities, f"capabilities: {', '.join(map(str, capabilities))}")
    yield Check("has a projector", bool(shown.get("projector_info")), _projector(shown))
    yield from _check_parameters(shown, commands)
    if folder is not None:
        yield from _check_prompts(server, model, folder)
    yield from _check_images(server, model, version)


def _check_parameters(shown: dict[str, Any], commands: list[Command]) -> Iterator[Check]:
    lines = [line.split(None, 1) for line in str(shown.get("parameters", "")).splitlines()]
    values = [(parts[0], parts[1].strip().strip('"')) for parts in lines if len(parts) == 2]
    for name in ("num_ctx", "repeat_penalty"):
        wanted = [command.args for command in commands if command.name == name][-1:]
        seen = [value for key, value in values if key == name]
        if wanted:
            equal = len(seen) == 1 and float(seen[0]) == float(wanted[0])
            yield Check(name, equal, f"{', '.join(seen) or 'not set'} (wanted {wanted[0]})")
    stops = {command.args for command in commands if command.name == "stop"}
    seen_stops = {value for key, value in values if key == "stop"}
    yield Check("stops", stops == seen_stops, ", ".join(sorted(seen_stops)) or "none")


def _check_prompts(server: OllamaClient, model: str, folder: ModelFolder) -> Iterator[Check]:
    for case, expected in zip(CASES, render_folder(folder, list(CASES)), strict=True):
        if expected is None:
            continue  # the chat template takes no such conversation
        try:
            rendered = rendered_prompt(server, model, case)
        except OllamaError as error:
            yield Check(f"prompt: {case.name}", False, str(error))
            continue
        equal = rendered == expected
        spacing = not equal and "".join(rendered.split()) == "".join(expected.split())
        seen = "equals the chat template" if equal else "differs in blanks only" if spacing else "differs"
        # The two sources of prompts each differ in blanks somewhere (TEMPLATE in tools' JSON, RENDERER after images).
        yield Check(f"prompt: {case.name}", equal or (spacing and case.tools is not None), seen)


def rendered_prompt(server: OllamaClient, model: str, case: Conversation) -> str:
    """The prompt the server makes of a conversation, without running the model. Raises OllamaError."""
    messages = [
        {**message, "images": [encoded_image(0)] * message["images"]} if "images" in message else message
        for message in case.messages
    ]
    more = {"tools": case.tools} if case.tools else {}
    answer = server.chat(model, messages, _debug_render_only=True, **more)
    debug = answer.get("_debug_info")
    if not isinstance(debug, dict) or "rendered_template" not in debug:
        raise OllamaError("the server did not show the prompt (_debug_render_only); it may be too old.")
    return IMAGE_TAG.sub(lambda _: IMAGE, str(debug["rendered_template"]))


def _check_images(server: OllamaClient, model: str, version: Version) -> Iterator[Check]:
    """Without an image, and with two different ones, from the same words."""
    none, one, other = (_probe(server, model, images) for images in ([], [encoded_image(0)], [encoded_image(1)]))
    min_tokens = 1000 if version >= LLAMA_SERVER else 1
    grew = one[0] - none[0]
    yield Check("an image costs tokens", grew >= min_tokens, f"{none[0]} tokens without, {one[0]} with an image")
    differ = any(abs(a - b) > SAME for a, b in zip(one[1], other[1], strict=False)) or len(one[1]) != len(other[1])
    yield Check("an image changes the answer", differ, f"log-probabilities {_short(one[1])} and {_short(other[1])}")


def _probe(server: OllamaClient, model: str, images: list[str]) -> tuple[int, list[float]]:
    message = {"role": "user", "content": "What is in this picture?", **({"images": images} if images else {})}
    options = {"temperature": 0, "num_predict": 1, "seed": 0}
    answer = server.chat(model, [message], options=options, logprobs=True, top_logprobs=5)
    tokens = answer.get("logprobs") or []
    first = tokens[0] if tokens and isinstance(tokens[0], dict) else {}
    top = {str(entry.get("token")): float(entry.get("logprob", 0)) for entry in first.get("top_logprobs") or [first]}
    return int(answer.get("prompt_eval_count", 0)), [top[token] for token in sorted(top)]


def encoded_image(kind: int, side: int = 256) -> str:
    """A PNG in base64: 0 is red, 1 is blue stripes on white."""
    red, blue, white = b"\xff\x00\x00", b"\x00\x00\xff", b"\xff\xff\xff"
    rows = (red * side if kind == 0 else (blue if row // 16 % 2 else white) * side for row in range(side))
    data = zlib.compress(b"".join(b"\x00" + row for row in rows))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return base64.b64encode(png).decode()


def _projector(shown: dict[str, Any]) -> str:
    info = shown.get("projector_info") or {}
    return str(info.get("clip.projector_type", "none"))


def _short(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values) + "]"
