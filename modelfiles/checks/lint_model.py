"""What `lint` says of a Modelfile beside the model it is for: prompt, images and the end of answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from modelfiles import counted
from modelfiles.checks.context import Context
from modelfiles.checks.finding import Finding, finding_at
from modelfiles.checks.image_rules import folder_image_findings, fused_findings
from modelfiles.checks.lint_sources import importable_files, local_path
from modelfiles.folder.chat_template import ChatTemplateError
from modelfiles.folder.gguf_header import GgufError
from modelfiles.folder.gguf_model import GgufModel
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.language import gotemplate
from modelfiles.language.gotemplate import GoTemplateError
from modelfiles.language.grammar import Command
from modelfiles.ollama.architectures import find_architecture
from modelfiles.ollama.budget import context_needed, image_tokens
from modelfiles.ollama.chat_facts import read_chat_facts
from modelfiles.ollama.prompts import CASES, RENDERERS, Conversation, render_model, render_template
from modelfiles.ollama.versions import LLAMA_SERVER


def model_findings(commands: list[Command], folder: Path, context: Context) -> Iterator[Finding]:
    """Every finding that needs the model behind FROM, or the lack of it; `folder` is the Modelfile's."""
    model = _model(commands, folder)
    yield from _prompt(commands, model, context)
    yield from _limits(commands, model, context)
    if isinstance(model, ModelFolder):
        yield from _images(commands, model, context)


def _first(commands: list[Command], name: str) -> Command | None:
    """The one that counts: the last."""
    return next((command for command in reversed(commands) if command.name == name), None)


def _model(commands: list[Command], folder: Path) -> ModelFolder | GgufModel | None:
    """The folder of the last FROM, or the model of a GGUF pair; None for a name or for what cannot be read."""
    paths = [local_path(command.args, folder) for command in reversed(commands) if command.name == "model"]
    with suppress(ModelFolderError):  # `doctor` says what is wrong with a folder
        if paths and paths[0] and (paths[0] / "config.json").is_file():
            return ModelFolder.open(paths[0])
    for path in filter(None, paths):
        for file in importable_files(path) if path.is_dir() else [path]:
            with suppress(GgufError):  # MF502 says so
                model = GgufModel.open(file)
                if model.chat_template or model.added_tokens:  # a projector has neither
                    return model
    return None


def _prompt(commands: list[Command], model: ModelFolder | GgufModel | None, context: Context) -> Iterator[Finding]:
    template, renderer = _first(commands, "template"), _first(commands, "renderer")
    if renderer and template and template.args.strip() != "{{ .Prompt }}":
        yield finding_at("MF409", "RENDERER makes the prompt, so this TEMPLATE is ignored.", template)
    if renderer:
        yield from _check_renderer(renderer, model)
    elif template:
        yield from _check_template(template, model, context)


def _check_template(template: Command, model: ModelFolder | GgufModel | None, context: Context) -> Iterator[Finding]:
    try:
        parsed = gotemplate.parse_template(template.args)
    except GoTemplateError:
        return  # MF314 says so
    lost = re.search(r"<\|im_start\|>(system|user|assistant) |<\|im_end\|> ", template.args)
    if lost:
        yield finding_at("MF401", f"after {lost[0].strip()!r} stands a blank where a newline belongs.", template)
    if not {"Tools", "ToolCalls"} <= gotemplate.fields(parsed):
        yield finding_at("MF402", "TEMPLATE has no .Tools and .ToolCalls.", template)
        if context.ollama >= LLAMA_SERVER and model and "tools" in (model.chat_template or ""):
            yield finding_at("MF403", _outvoted(model), template)
    if model and not lost:
        yield from _compare(template, model, lambda case: render_template(parsed, case))


def _outvoted(model: ModelFolder | GgufModel) -> str:
    # Ollama 0.33's converter takes the chat template from tokenizer_config.json alone.
    if isinstance(model, GgufModel) or model.tokenizer_config.get("chat_template"):
        return "the model's own chat template, which has tools, outvotes this TEMPLATE."
    source = model.chat_template_and_source[1]
    return (
        f"{source} has tools, so it outvotes this TEMPLATE in a version of Ollama that imports it (0.33 does not yet)."
    )


def _check_renderer(renderer: Command, model: ModelFolder | GgufModel | None) -> Iterator[Finding]:
    if model is None or renderer.args not in RENDERERS:
        return
    try:
        thinks = read_chat_facts(model).thinking
    except (ChatTemplateError, ModelFolderError):
        return
    if thinks != renderer.args.endswith("thinking"):
        kind = "opens a <think> block" if thinks else "answers directly"
        yield finding_at("MF408", f"the model's chat template {kind}, {renderer.args} does not.", renderer)


def _compare(
    command: Command, model: ModelFolder | GgufModel, render: Callable[[Conversation], str]
) -> Iterator[Finding]:
    cases = [case for case in CASES if case.tools is None]
    try:
        expected = render_model(model, cases)
        ours = [render(case) for case in cases]
    except (ChatTemplateError, ModelFolderError, GoTemplateError):
        return
    differs = [case.name for case, one, other in zip(cases, ours, expected, strict=True) if other not in (None, one)]
    if differs:
        yield finding_at("MF410", f"the prompt differs for: {', '.join(differs)}.", command)


def _limits(commands: list[Command], model: ModelFolder | GgufModel | None, context: Context) -> Iterator[Finding]:
    num_ctx, source = _first(commands, "num_ctx"), _first(commands, "model")
    architecture = find_architecture(model.architecture) if isinstance(model, ModelFolder) else None
    needed = "what the model and its images need"
    if isinstance(model, ModelFolder) and architecture:
        each = image_tokens(architecture, model, context.image_size, context.ollama)
        tokens = context_needed(each, context.images_per_request)
        needed = str(tokens)
        if num_ctx and num_ctx.args.isdecimal() and int(num_ctx.args) < context.images_per_request * each:
            images = counted(context.images_per_request, "image takes", "images take")
            message = f"{images} {each} tokens each; num_ctx must be at least {tokens}."
            yield finding_at("MF404", message, num_ctx)
    if num_ctx is None:
        yield finding_at("MF407", f"num_ctx is left to the GPU's memory; {needed} would do.", source)
    if _first(commands, "repeat_penalty") is None:
        yield finding_at("MF405", "repeat_penalty is left to the version of Ollama.", source)
    if model:
        ends = [model.added_tokens[i][0] for i in model.eos_token_ids if i in model.added_tokens]
        stops = [command for command in commands if command.name == "stop"]
        missing = [end for end in ends if end not in [stop.args for stop in stops]]
        if missing:
            yield finding_at("MF406", f"{missing[0]} ends an answer but is no stop.", stops[-1] if stops else source)


def _images(commands: list[Command], model: ModelFolder, context: Context) -> Iterator[Finding]:
    architecture, source = find_architecture(model.architecture), _first(commands, "model")
    if architecture and source:
        findings = [
            *folder_image_findings(model, architecture, context.ollama),
            *fused_findings(architecture.resized_by_ollama, context.images_per_request, context.ollama),
        ]
        yield from (replace(finding, file="", line=source.line, column=source.column) for finding in findings)
