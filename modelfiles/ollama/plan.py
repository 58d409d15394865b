"""Decides every line of the Modelfile for a folder, each with its reason and where it was read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modelfiles import counted
from modelfiles.folder.chat_template import ChatTemplateError
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.language import gotemplate
from modelfiles.language.gotemplate import GoTemplateError
from modelfiles.language.grammar import Command
from modelfiles.ollama.architectures import ALSO_IMPORTED, ARCHITECTURES, CHATML, Architecture, find_architecture
from modelfiles.ollama.budget import context_needed, image_tokens, kv_cache_bytes
from modelfiles.ollama.chat_facts import ChatFacts, read_chat_facts
from modelfiles.ollama.parameters import Line, answer_limit, sampling_lines
from modelfiles.ollama.prompts import CASES, RENDERERS, render_model, render_renderer, render_template
from modelfiles.ollama.repair import Change, RepairError, repaired_configs
from modelfiles.ollama.versions import DIRECTIVES, LLAMA_SERVER, NEWEST, OLDEST, Version, version_text

QUANTIZATIONS = ("F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0")
ROUTES = ("safetensors", "gguf", "adapter-gguf")
PROMPTS = ("auto", "template", "renderer")


class ModelfilePlanError(ValueError):
    """There is no Modelfile that would work; one sentence says why and what to do."""


@dataclass(frozen=True)
class Options:
    """What the user chooses. `system` replaces the chat template's own default; sizes are in pixels."""

    route: str = ""
    prompt: str = "auto"
    ollama: Version = NEWEST
    images_per_request: int = 8
    image_size: tuple[int, int] = (1024, 1024)
    system: str | None = None
    quantize: str = ""
    base: str = ""


@dataclass(frozen=True)
class ModelfilePlan:
    """A Modelfile in the making.

    files: repaired configs by name; prompt_equal: test conversation -> whether the prompt equals the chat template's.
    """

    folder: ModelFolder
    architecture: Architecture
    options: Options
    route: str
    lines: list[Line]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    prompt_equal: dict[str, bool] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def commands(self) -> list[Command]:
        return [line.command for line in self.lines]

    @property
    def num_ctx(self) -> int:
        return next(int(command.args) for command in self.commands if command.name == "num_ctx")

    @property
    def kv_cache_bytes(self) -> int:
        return kv_cache_bytes(self.folder, self.num_ctx)


def make_modelfile_plan(folder: ModelFolder, options: Options) -> ModelfilePlan:
    """The Modelfile for a merged model's folder. Raises ModelfilePlanError and ModelFolderError."""
    try:
        facts = read_chat_facts(folder)
    except ChatTemplateError as error:
        raise ModelfilePlanError(f"{folder.path}: {error}") from None
    architecture = choose_architecture(folder, facts)
    route = _choose_route(folder, architecture, options)
    lines, warnings = _from_lines(route, options), []
    files: dict[str, dict[str, Any]] = {}
    changes: list[Change] = []
    if route == "safetensors":
        try:
            files, changes = repaired_configs(folder, architecture)
        except RepairError as error:
            raise ModelfilePlanError(str(error)) from None
    strategy = _choose_prompt(architecture, facts, options)
    prompt_lines, prompt_equal = _prompt_lines(folder, architecture, strategy)
    lines += prompt_lines
    differs = [name for name, equal in prompt_equal.items() if not equal and not name.startswith("tool")]
    if differs:
        warnings.append(f"the prompt differs from the model's chat template for: {', '.join(differs)}.")
    system = options.system if options.system is not None else facts.default_system
    if system:
        chosen = "--system-file" if options.system is not None else folder.chat_template_and_source[1]
        lines.append(Line(Command("system", system), "sent when a request brings no system message", chosen))
    lines += sampling_lines(folder)
    context, warning = _context_line(folder, architecture, options)
    lines.append(context)
    warnings += [warning] if warning else []
    lines += answer_limit(folder, facts)
    lines += [
        Line(Command("stop", text), f"ends an answer (token {token})", source)
        for token, text, source in stop_tokens(folder, facts)
    ]
    since = max(_since(architecture, route), DIRECTIVES["requires"])
    if options.ollama >= DIRECTIVES["requires"]:
        reason = "the first Ollama that can do all of this; Ollama shows it but does not enforce it"
        lines.append(Line(Command("requires", version_text(since)), reason))
    return ModelfilePlan(folder, architecture, options, route, lines, files, changes, prompt_equal, warnings)


def choose_architecture(folder: ModelFolder, facts: ChatFacts | None = None) -> Architecture:
    """The table's row, or the general ChatML row. Raises ModelfilePlanError listing what is supported."""
    architecture = find_architecture(folder.architecture)
    if architecture:
        return architecture
    if folder.architecture and facts and facts.chatml and folder.vision_config:
        return CHATML
    if folder.architecture in ALSO_IMPORTED:
        since = version_text(ALSO_IMPORTED[folder.architecture])
        raise ModelfilePlanError(
            f"{folder.path} is a {folder.architecture}, which Ollama imports since {since}, but no Modelfile is "
            "written for it here: write one with `FROM .` and check it with `lensmith modelfile lint`."
        )
    known = ", ".join(row.name for row in ARCHITECTURES)
    what = f"the architecture {folder.architecture}" if folder.architecture else "a config.json without architectures"
    raise ModelfilePlanError(
        f"{folder.path} has {what}, which is not supported; supported are {known}, and any ChatML VLM."
    )


def stop_tokens(folder: ModelFolder, facts: ChatFacts | None) -> list[tuple[int, str, str]]:
    """(id, text, source) of every token that ends an answer, each one special token. Raises ModelfilePlanError."""
    found = []
    for token in folder.eos_token_ids:
        text, special = folder.added_tokens.get(token, ("", False))
        if not text or not special:
            raise ModelfilePlanError(
                f"eos_token_id {token} of {folder.path} is no special token of tokenizer.json, so it cannot be a stop; "
                "correct generation_config.json."
            )
        found.append((token, text, "generation_config.json:eos_token_id"))
    if facts and facts.end_of_turn and facts.end_of_turn not in [text for _, text, _ in found]:
        token = next(i for i, (text, _) in folder.added_tokens.items() if text == facts.end_of_turn)
        found.append((token, facts.end_of_turn, folder.chat_template_and_source[1]))
    if not found:
        raise ModelfilePlanError(
            f"{folder.path} names no token that ends an answer; add eos_token_id to generation_config.json."
        )
    return list(dict.fromkeys(found))


def _choose_route(folder: ModelFolder, architecture: Architecture, options: Options) -> str:
    route = options.route or architecture.routes[0]
    if options.quantize and options.quantize.upper() not in QUANTIZATIONS:
        raise ModelfilePlanError(f"Ollama cannot quantize to {options.quantize}; it can to {', '.join(QUANTIZATIONS)}.")
    if route == "safetensors" and architecture.since is None:
        raise ModelfilePlanError(
            f"Ollama does not import {folder.architecture} from safetensors (unsupported architecture); "
            "use --route gguf."
        )
    since = _since(architecture, route)
    if options.ollama < OLDEST:
        raise ModelfilePlanError(
            f"Ollama {version_text(options.ollama)} is too old for all of this; use at least {version_text(OLDEST)}."
        )
    if options.ollama < since:
        raise ModelfilePlanError(
            f"Ollama {version_text(options.ollama)} cannot take {architecture.name} as {route}; it needs "
            f"{version_text(since)} or later."
        )
    return route


def _since(architecture: Architecture, route: str) -> Version:
    return (architecture.since or LLAMA_SERVER) if route == "safetensors" else architecture.gguf_since


def _from_lines(route: str, options: Options) -> list[Line]:
    if route == "safetensors":
        return [Line(Command("model", "."), "this folder: safetensors that Ollama converts")]
    if route == "gguf":
        return [
            Line(Command("model", "./model.gguf"), "the language model, from llama.cpp's converter"),
            Line(Command("model", "./mmproj.gguf"), "the vision tower; without it the model cannot see"),
        ]
    if not options.base:
        raise ModelfilePlanError(
            "--route adapter-gguf needs --base: the Ollama name of the model the adapter was trained on."
        )
    return [
        Line(Command("model", options.base), "the base model the adapter was trained on", "--base"),
        Line(Command("adapter", "./adapter.gguf"), "the adapter, from llama.cpp's convert_lora_to_gguf.py"),
    ]


def _choose_prompt(architecture: Architecture, facts: ChatFacts, options: Options) -> str:
    """ "template", or the kind of renderer ("instruct", "thinking")."""
    kind = "thinking" if facts.thinking else "instruct"
    if options.prompt == "renderer" or (options.prompt == "auto" and facts.thinking):
        if kind not in architecture.renderers:
            raise ModelfilePlanError(f"Ollama has no renderer for {architecture.name} ({kind}); use --prompt template.")
        return kind
    if facts.thinking:
        raise ModelfilePlanError(
            "--prompt template cannot open the <think> block that this model's template opens; use --prompt renderer."
        )
    return "template"


def _prompt_lines(folder: ModelFolder, architecture: Architecture, strategy: str) -> tuple[list[Line], dict[str, bool]]:
    source = folder.chat_template_and_source[1]
    if strategy == "template":
        text = architecture.template_text()
        template = gotemplate.parse_template(text)
        prompts = [render_template(template, case) for case in CASES]
        reason = "written for the model's chat template; offers tools, so that Ollama does not replace it"
        lines = [Line(Command("template", text), reason, source)]
    else:
        renderer, parser = architecture.renderers[strategy]
        reason = f"the chat template is for a model that {'thinks' if strategy == 'thinking' else 'answers directly'}"
        lines = [
            Line(Command("template", "{{ .Prompt }}"), "the renderer makes the prompt"),
            Line(Command("renderer", renderer), reason, source),
            Line(Command("parser", parser), "reads tool calls and thinking out of the answer", source),
        ]
        if renderer not in RENDERERS:
            return lines, {}
        prompts = [render_renderer(renderer, case) for case in CASES]
    try:
        expected = render_model(folder, list(CASES))
    except (ChatTemplateError, GoTemplateError):
        return lines, {}
    pairs = zip(CASES, prompts, expected, strict=True)
    return lines, {case.name: ours == theirs for case, ours, theirs in pairs if theirs is not None}


def _context_line(folder: ModelFolder, architecture: Architecture, options: Options) -> tuple[Line, str]:
    each = image_tokens(architecture, folder, options.image_size, options.ollama)
    needed = context_needed(each, options.images_per_request)
    limit = folder.max_position_embeddings or needed
    width, height = options.image_size
    count, size = options.images_per_request, f"{width}x{height}"
    reason = f"{counted(count, f'image of {size} takes', f'images of {size} take')} {each} tokens each, and text 2048"
    warning = ""
    if needed > limit:
        warning = (
            f"{counted(count, 'image needs', 'images need')} {needed} tokens but the model ends at {limit}: "
            "give fewer images per request or smaller ones."
        )
        reason += f"; cut to the model's own limit of {limit}"
    line = Line(Command("num_ctx", str(min(needed, limit))), reason, "config.json:max_position_embeddings")
    return line, warning
