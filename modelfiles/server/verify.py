"""Proves on a live Ollama that a model does what its Modelfile says: it sees, holds its images, gets its prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from modelfiles import counted
from modelfiles.folder.files import positive_int
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.language.gotemplate import GoTemplateError
from modelfiles.language.grammar import Command
from modelfiles.ollama.architectures import find_architecture
from modelfiles.ollama.budget import image_tokens
from modelfiles.ollama.image_limits import OLLAMA_QWEN_VL, RESIZED_GGUF_ARCHITECTURES
from modelfiles.ollama.prompts import CASES, IMAGE, Conversation, render_model, render_renderer
from modelfiles.ollama.versions import LLAMA_SERVER, Version, parse_version, version_text
from modelfiles.server.client import OllamaClient, OllamaError
from modelfiles.server.probe import PROBE_SIDE, Reply, ask_about, encoded_image

IMAGE_TAG = re.compile(r"\[img-\d+\]")
SAME = 1e-6  # log-probabilities closer than this are the same
SLACK = 0.05  # a share of an image's tokens that marks and blanks between images may add or save


@dataclass(frozen=True)
class Check:
    """One thing that was asked of the server, whether it held, and what was seen."""

    name: str
    ok: bool
    seen: str


def verify(
    server: OllamaClient, model: str, commands: list[Command], folder: ModelFolder | None, images_per_request: int = 8
) -> Iterator[Check]:
    """Runs the checks one by one. Raises OllamaError.

    folder: the model's, to compare prompts and shapes with; images_per_request: with 1, neighbours do not matter.
    """
    version = server.version()
    needed = next((command.args for command in commands if command.name == "requires"), "")
    yield Check("version", not needed or version >= parse_version(needed), version_text(version))
    shown = server.show(model)
    capabilities = shown.get("capabilities") or []
    yield Check("sees images", "vision" in capabilities, f"capabilities: {', '.join(map(str, capabilities))}")
    yield _check_projector(shown)
    if folder is not None:
        yield _check_shape(shown, folder)
    yield from _check_parameters(shown, commands)
    if folder is not None:
        renderer = next((command.args for command in commands if command.name == "renderer"), "")
        yield from _check_prompts(server, model, folder, renderer)
    yield from _check_images(server, model, _expected_tokens(shown, folder, version), images_per_request)


def _info(shown: dict[str, Any]) -> dict[str, Any]:
    info = shown.get("model_info")
    return info if isinstance(info, dict) else {}


def _check_projector(shown: dict[str, Any]) -> Check:
    """The vision tower: a file of its own, or inside the model's GGUF, as Ollama's converter writes Qwen2.5-VL."""
    projector = shown.get("projector_info") or {}
    inside = any(".vision." in key for key in _info(shown))
    seen = "inside the model's GGUF" if inside and not projector else projector.get("clip.projector_type", "none")
    return Check("has a projector", bool(projector) or inside, str(seen))


def _check_shape(shown: dict[str, Any], folder: ModelFolder) -> Check:
    """Whether the served model has the folder's layers and width: another model behind the name has not."""
    info, text = _info(shown), folder.text_config
    prefix = str(info.get("general.architecture", ""))
    pairs = {
        "layers": (positive_int(info.get(f"{prefix}.block_count")), positive_int(text.get("num_hidden_layers"))),
        "width": (positive_int(info.get(f"{prefix}.embedding_length")), positive_int(text.get("hidden_size"))),
    }
    wrong = [
        f"{there} {name}, {here} in the folder" for name, (there, here) in pairs.items() if there and there != here
    ]
    known = any(there for there, _ in pairs.values())
    seen = ", ".join(wrong) or (
        f"{counted(pairs['layers'][0], 'layer')} of {pairs['width'][0]}" if known else "not shown"
    )
    return Check("has the folder's shape", not wrong and known, seen)


def _check_parameters(shown: dict[str, Any], commands: list[Command]) -> Iterator[Check]:
    lines = [line.split(None, 1) for line in str(shown.get("parameters", "")).splitlines()]
    values = [(parts[0], parts[1].strip().strip('"')) for parts in lines if len(parts) == 2]
    for name in ("num_ctx", "repeat_penalty", "num_predict"):
        wanted = [command.args for command in commands if command.name == name][-1:]
        seen = [value for key, value in values if key == name]
        if wanted:
            equal = len(seen) == 1 and float(seen[0]) == float(wanted[0])
            yield Check(name, equal, f"{', '.join(seen) or 'not set'} (wanted {wanted[0]})")
    stops = {command.args for command in commands if command.name == "stop"}
    seen_stops = {value for key, value in values if key == "stop"}
    yield Check("stops", stops == seen_stops, ", ".join(sorted(seen_stops)) or "none")


def _check_prompts(server: OllamaClient, model: str, folder: ModelFolder, renderer: str) -> Iterator[Check]:
    for case, expected in zip(CASES, render_model(folder, list(CASES)), strict=True):
        if expected is None:
            continue  # the chat template takes no such conversation
        try:
            rendered = rendered_prompt(server, model, case)
        except OllamaError as error:
            yield Check(f"prompt: {case.name}", False, str(error))
            continue
        ok, seen = _compare_prompts(rendered, expected, case, renderer)
        yield Check(f"prompt: {case.name}", ok, seen)


def _compare_prompts(rendered: str, expected: str, case: Conversation, renderer: str) -> tuple[bool, str]:
    if rendered == expected:
        return True, "equals the chat template"
    # The two sources of prompts each differ in blanks somewhere (TEMPLATE in tools' JSON, RENDERER after images).
    spacing = "".join(rendered.split()) == "".join(expected.split())
    if spacing and renderer:
        try:
            if rendered == render_renderer(renderer, case):
                return True, f"differs in the blank that the renderer {renderer} puts after images"
        except GoTemplateError:
            pass  # a renderer that is not known here
    return spacing and case.tools is not None, "differs in blanks only" if spacing else "differs"


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


def _expected_tokens(shown: dict[str, Any], folder: ModelFolder | None, version: Version) -> int:
    """What one of the probe's images costs in this architecture at least."""
    architecture = find_architecture(folder.architecture) if folder else None
    if folder and architecture:
        return image_tokens(architecture, folder, (PROBE_SIDE, PROBE_SIDE), version)
    resized = _info(shown).get("general.architecture") in RESIZED_GGUF_ARCHITECTURES
    return OLLAMA_QWEN_VL.min if resized and version >= LLAMA_SERVER else 1


def _check_images(server: OllamaClient, model: str, expected: int, images_per_request: int) -> Iterator[Check]:
    """Without an image, with two different ones, and with twice the same, from the same words."""
    red, striped = encoded_image(0), encoded_image(1)
    none, one, other = (ask_about(server, model, images) for images in ([], [red], [striped]))
    for reply, what in ((none, "without an image"), (one, "with an image"), (other, "with another image")):
        if reply.problem:
            yield Check("answers", False, f"{what}: {reply.problem}")
            return
    yield Check("answers", True, f"first token's log-probabilities {_short(one)}")
    cost = one.prompt_tokens - none.prompt_tokens
    enough = cost >= expected * (1 - SLACK)
    seen = f"{none.prompt_tokens} tokens without, {one.prompt_tokens} with an image"
    yield Check("an image costs tokens", enough, seen if enough else f"{seen}; {expected} more are expected")
    differ = any(abs(a - b) > SAME for a, b in zip(one.logprobs, other.logprobs, strict=False))
    yield Check("an image changes the answer", differ, f"log-probabilities {_short(one)} and {_short(other)}")
    if images_per_request > 1:
        yield _check_neighbours(server, model, none.prompt_tokens, cost)


def _check_neighbours(server: OllamaClient, model: str, without: int, cost: int) -> Check:
    """Two equal images must cost twice one; llama.cpp took them for one in some versions."""
    name, red = "two equal images are two", encoded_image(0)
    two = ask_about(server, model, [red, red])
    if two.problem:
        return Check(name, False, two.problem)
    spent = two.prompt_tokens - without
    seen = f"{spent} tokens, where one takes {cost}"
    if cost > 0 and abs(spent - 2 * cost) <= max(8, 2 * cost * SLACK):
        return Check(name, True, seen)
    apart = ask_about(server, model, [red, red], "[img] [img] ")
    helps = not apart.problem and apart.prompt_tokens - without > 1.5 * cost > 0
    return Check(name, False, seen + ("; with a blank, `[img] [img]`, both are seen" if helps else ""))


def _short(reply: Reply) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in reply.logprobs) + "]"
