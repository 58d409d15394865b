"""Checks a Modelfile: what Ollama refuses, what it silently changes, and what will not work for a vision model.

The rules are in modelfiles/checks/rules.py. Positions count from 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from modelfiles.checks.finding import Finding
from modelfiles.folder.chat_template import ChatTemplateError
from modelfiles.folder.gguf_header import GgufError, read_gguf_metadata
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.language import gotemplate
from modelfiles.language.create_request import DEPRECATED, PARAMETERS, RequestError, create_request, parameter_value
from modelfiles.language.gotemplate import GoTemplateError
from modelfiles.language.grammar import Command, ModelfileSyntaxError, parse
from modelfiles.ollama.architectures import find_architecture
from modelfiles.ollama.budget import IMAGE_MARKS, QWEN_IMAGE_TOKENS, context_needed, image_tokens
from modelfiles.ollama.chat_facts import read_chat_facts
from modelfiles.ollama.prompts import CASES, RENDERERS, Conversation, render_folder, render_template
from modelfiles.ollama.versions import DIRECTIVES, LLAMA_SERVER, NEWEST, Version, version_text

# Names that Ollama 0.33 knows (model/renderers/renderer.go, model/parsers/parsers.go).
KNOWN_RENDERERS = {
    "qwen3-vl-instruct", "qwen3-vl-thinking", "qwen3.5", "qwen3.8", "qwen3-coder", "gemma4", "gemma4-small",
    "gemma4-large", "lfm2", "lfm2-thinking", "glm-ocr", "glm-4.7", "cogito", "deepseek3.1", "olmo3", "olmo3-think",
    "olmo3.1", "nemotron-3-nano", "nemotron-3.5-nano", "functiongemma", "laguna", "poolside-v1", "cohere", "ornith",
    "glimmer",
}  # fmt: skip
KNOWN_PARSERS = KNOWN_RENDERERS | {
    "qwen3",
    "qwen3-thinking",
    "gemma4-no-thinking",
    "ministral",
    "passthrough",
    "harmony",
}
_TEXTS = ("system", "template", "message", "license")


@dataclass(frozen=True)
class Context:
    """What the Modelfile is for: an Ollama, a number of images a request, their size (width, height in pixels)."""

    ollama: Version = NEWEST
    images_per_request: int = 8
    image_size: tuple[int, int] = (1024, 1024)


def lint(source: bytes, folder: Path, context: Context) -> tuple[list[Command], list[Finding]]:
    """The commands and findings of a Modelfile that stands in `folder`."""
    try:
        commands = parse(source)
    except ModelfileSyntaxError as error:
        return [], [Finding("MF301", f"Ollama says: {error.ollama}", "", error.line, error.column)]
    findings = [*_values(commands, source, context), *_sources(commands, folder, context)]
    model = _model(commands, folder)
    findings += [*_prompt(commands, model, context), *_limits(commands, model, context)]
    return commands, sorted(findings, key=lambda finding: (finding.line, finding.column, finding.rule))


def _at(rule: str, message: str, command: Command | None = None) -> Finding:
    return Finding(rule, message, "", command.line if command else 0, command.column if command else 0)


def _first(commands: list[Command], name: str) -> Command | None:
    """The one that counts: the last."""
    return next((command for command in reversed(commands) if command.name == name), None)


def _values(commands: list[Command], source: bytes, context: Context) -> Iterator[Finding]:
    seen: dict[str, Command] = {}
    for command in commands:
        name, args = command.pair
        first = DIRECTIVES.get(name)
        if first and context.ollama < first:
            yield _at(
                "MF313",
                f"{name.upper()} needs Ollama {version_text(first)}; this is for {version_text(context.ollama)}.",
                command,
            )
        if name in ("renderer", "parser") and args not in (KNOWN_RENDERERS if name == "renderer" else KNOWN_PARSERS):
            yield _at("MF311", f"Ollama has no {name} {args!r}.", command)
        if name == "requires":
            try:
                create_request([command])
            except RequestError as error:
                yield _at("MF312", f"Ollama says: {error}", command)
        if name == "template":
            try:
                gotemplate.parse_template(args)
            except GoTemplateError as error:
                yield _at("MF314", f"TEMPLATE does not parse: {error}.", command)
        if name in DEPRECATED:
            yield _at("MF304", f"{name} is deprecated and has no effect.", command)
        elif name not in ("model", "adapter", "draft", "renderer", "parser", "requires", *_TEXTS):
            yield from _parameter(command)
        if name in ("system", "message", "model") and re.search(r"\s#\s", args) and "\n" not in args:
            yield _at("MF305", f"{args[args.index('#') :][:30]!r} is part of the value, not a comment.", command)
        if name in ("system", "message", "stop") and re.search(r"\\[nt]", args):
            yield _at("MF307", f"{name} has an escape that Ollama does not read as one.", command)
        if name not in ("model", "stop", "license", "message", "adapter"):
            if name in seen:
                yield _at("MF308", f"line {command.line} replaces this {name.upper()}.", seen[name])
            seen[name] = command
    yield from _deleted_characters(commands, source)


def _parameter(command: Command) -> Iterator[Finding]:
    if command.name == "stop":
        return
    try:
        parameter_value(command)
    except RequestError as error:
        if command.name in PARAMETERS:
            hint = "; a comment needs a line of its own" if "#" in command.args else ""
            yield _at("MF303", f"Ollama says: {error}{hint}.", command)
        else:
            yield _at("MF302", f"Ollama says: {error}.", command)


def _deleted_characters(commands: list[Command], source: bytes) -> Iterator[Finding]:
    starts = [(command.line, command.column, command) for command in commands]
    text = source.decode("utf-8", errors="replace").removeprefix("\ufeff")
    reported: set[int] = set()
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        for column, character in enumerate(line, 1):
            if character.isprintable() or character == "\t":
                continue
            owner = max((s for s in starts if s[:2] <= (number, column)), default=None, key=lambda start: start[:2])
            if owner and owner[2].name in (*_TEXTS, "stop") and id(owner[2]) not in reported:
                reported.add(id(owner[2]))
                message = f"Ollama deletes U+{ord(character):04X} from this {owner[2].name.upper()}."
                yield Finding("MF306", message, "", number, column)


def _sources(commands: list[Command], folder: Path, context: Context) -> Iterator[Finding]:
    files: list[tuple[Command, Path]] = []
    for command in commands:
        if command.name not in ("model", "adapter"):
            continue
        path = local_path(command.args, folder)
        if path is None or not path.exists():
            if path is not None or command.name == "adapter":
                yield _at("MF309", f"{command.args!r} does not exist, so Ollama takes it as a model's name.", command)
        elif path.is_dir():
            found = _importable(path)
            if not found:
                yield _at("MF310", f"{command.args!r} holds no model*.safetensors and no *.gguf.", command)
            files += [(command, file) for file in found if file.suffix == ".gguf"]
        elif command.name == "model":
            files.append((command, path))
    yield from _gguf_files(files, context)


def local_path(args: str, folder: Path) -> Path | None:
    """The path that FROM or ADAPTER means, or None if it can only be a model's name."""
    path = Path(args).expanduser() if args.startswith("~") else folder / args
    looks_like_path = args.startswith((".", "/", "~")) or args.endswith((".gguf", ".safetensors", ".bin"))
    return path if looks_like_path or path.exists() else None


def _importable(path: Path) -> list[Path]:
    """What Ollama would take from a folder: it tries these patterns in order."""
    for pattern in ("model*.safetensors", "consolidated*.safetensors", "pytorch_model*.bin", "*.gguf"):
        found = sorted(path.glob(pattern))
        if found:
            return found
    return []


def _gguf_files(files: list[tuple[Command, Path]], context: Context) -> Iterator[Finding]:
    """The rules about a GGUF pair; a folder or name without GGUF has none."""
    metadata = []
    for command, path in files:
        try:
            metadata.append((command, read_gguf_metadata(path)))
        except GgufError as error:
            yield _at("MF502", f"{error}.", command)
    models = [(c, data) for c, data in metadata if data.get("general.type", "model") == "model"]
    projectors = [(c, data) for c, data in metadata if data.get("general.type") == "mmproj"]
    for command, data in models:
        architecture = str(data.get("general.architecture", ""))
        if not projectors and "vl" in architecture:
            yield _at("MF501", f"the model is a {architecture} but no mmproj comes with it.", command)
        width = data.get(f"{architecture}.embedding_length")
        for second, projector in projectors:
            out = projector.get("clip.vision.projection_dim")
            # Qwen3-VL's deepstack widens the model's input; its mmproj says only the width of one part.
            if width and out and width != out:
                yield _at("MF504", f"the mmproj makes vectors of {out}, the model takes {width}.", second)
    if projectors and context.ollama < LLAMA_SERVER:
        yield _at("MF503", f"this is for Ollama {version_text(context.ollama)}.", projectors[0][0])


def _model(commands: list[Command], folder: Path) -> ModelFolder | None:
    source = _first(commands, "model")
    path = local_path(source.args, folder) if source else None
    if path is None or not path.is_dir():
        return None
    try:
        return ModelFolder.open(path)
    except ModelFolderError:
        return None  # `doctor` says what is wrong with it


def _prompt(commands: list[Command], model: ModelFolder | None, context: Context) -> Iterator[Finding]:
    template, renderer = _first(commands, "template"), _first(commands, "renderer")
    if renderer and template and template.args.strip() != "{{ .Prompt }}":
        yield _at("MF409", "RENDERER makes the prompt, so this TEMPLATE is ignored.", template)
    if renderer:
        yield from _check_renderer(renderer, model)
    elif template:
        yield from _check_template(template, model, context)


def _check_template(template: Command, model: ModelFolder | None, context: Context) -> Iterator[Finding]:
    try:
        nodes = gotemplate.parse_template(template.args)
    except GoTemplateError:
        return  # MF314 says so
    lost = re.search(r"<\|im_start\|>(system|user|assistant) |<\|im_end\|> ", template.args)
    if lost:
        yield _at("MF401", f"after {lost[0].strip()!r} stands a blank where a newline belongs.", template)
    if not {"Tools", "ToolCalls"} <= gotemplate.fields(nodes):
        yield _at("MF402", "TEMPLATE has no .Tools and .ToolCalls.", template)
        if context.ollama >= LLAMA_SERVER and (model is None or "tools" in (model.chat_template or "")):
            yield _at("MF403", _outvoted(model), template)
    if model and not lost:
        yield from _compare(template, model, lambda case: render_template(nodes, case))


def _outvoted(model: ModelFolder | None) -> str:
    # Ollama 0.33's converter takes the chat template from tokenizer_config.json alone.
    if model is None or model.tokenizer_config.get("chat_template"):
        return "the model's own chat template, which has tools, outvotes this TEMPLATE."
    source = model.chat_template_and_source[1]
    return (
        f"{source} has tools, so it outvotes this TEMPLATE in a version of Ollama that imports it (0.33 does not yet)."
    )


def _check_renderer(renderer: Command, model: ModelFolder | None) -> Iterator[Finding]:
    if model is None or renderer.args not in RENDERERS:
        return
    try:
        thinks = read_chat_facts(model).thinking
    except (ChatTemplateError, ModelFolderError):
        return
    if thinks != renderer.args.endswith("thinking"):
        kind = "opens a <think> block" if thinks else "answers directly"
        yield _at("MF408", f"the model's chat template {kind}, {renderer.args} does not.", renderer)


def _compare(command: Command, model: ModelFolder, render: Callable[[Conversation], str]) -> Iterator[Finding]:
    cases = [case for case in CASES if case.tools is None]
    try:
        expected = render_folder(model, cases)
        ours = [render(case) for case in cases]
    except (ChatTemplateError, ModelFolderError, GoTemplateError):
        return
    differs = [case.name for case, one, other in zip(cases, ours, expected, strict=True) if other not in (None, one)]
    if differs:
        yield _at("MF410", f"the prompt differs for: {', '.join(differs)}.", command)


def _limits(commands: list[Command], model: ModelFolder | None, context: Context) -> Iterator[Finding]:
    num_ctx, source = _first(commands, "num_ctx"), _first(commands, "model")
    architecture = find_architecture(model.architecture) if model else None
    each = QWEN_IMAGE_TOKENS[0] + IMAGE_MARKS
    if model and architecture:
        each = image_tokens(architecture, model, context.image_size, context.ollama)
    needed = context_needed(each, context.images_per_request)
    if num_ctx is None:
        yield _at("MF407", f"num_ctx is left to the GPU's memory; {needed} would do.", source)
    elif num_ctx.args.isdecimal() and int(num_ctx.args) < context.images_per_request * each:
        message = f"{context.images_per_request} images take {each} tokens each; num_ctx must be at least {needed}."
        yield _at("MF404", message, num_ctx)
    if _first(commands, "repeat_penalty") is None:
        yield _at("MF405", "repeat_penalty is left to the version of Ollama.", source)
    stops = [command for command in commands if command.name == "stop"]
    ends = ["<|im_end|>", "<|endoftext|>"]
    if model:
        ends = [model.added_tokens[i][0] for i in model.eos_token_ids if i in model.added_tokens]
    missing = [end for end in ends if end not in [stop.args for stop in stops]]
    if missing and (stops or model):
        yield _at("MF406", f"{missing[0]} ends an answer but is no stop.", stops[-1] if stops else source)
