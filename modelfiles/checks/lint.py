"""Checks a Modelfile: what Ollama refuses, what it silently changes, and what will not work for a vision model.

The rules are in modelfiles/checks/*_rules.py. Positions count from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from modelfiles.checks.context import Context
from modelfiles.checks.finding import Finding, finding_at
from modelfiles.checks.lint_model import model_findings
from modelfiles.checks.lint_sources import source_findings
from modelfiles.language import gotemplate
from modelfiles.language.create_request import DEPRECATED, PARAMETERS, RequestError, create_request, parameter_value
from modelfiles.language.gotemplate import GoTemplateError
from modelfiles.language.grammar import Command, ModelfileSyntaxError, parse
from modelfiles.ollama.builtin_names import KNOWN_PARSERS, KNOWN_RENDERERS
from modelfiles.ollama.versions import DIRECTIVES, version_text

_TEXTS = ("system", "template", "message", "license")


def lint(source: bytes, folder: Path, context: Context) -> tuple[list[Command], list[Finding]]:
    """The commands and findings of a Modelfile that stands in `folder`."""
    try:
        commands = parse(source)
    except ModelfileSyntaxError as error:
        return [], [Finding("MF301", f"Ollama says: {error.ollama}", "", error.line, error.column)]
    findings = [*_values(commands, source, context), *source_findings(commands, folder, context)]
    findings += model_findings(commands, folder, context)
    return commands, sorted(findings, key=lambda finding: (finding.line, finding.column, finding.rule))


def _values(commands: list[Command], source: bytes, context: Context) -> Iterator[Finding]:
    seen: dict[str, Command] = {}
    for command in commands:
        name, args = command.pair
        first = DIRECTIVES.get(name)
        if first and context.ollama < first:
            yield finding_at(
                "MF313",
                f"{name.upper()} needs Ollama {version_text(first)}; this is for {version_text(context.ollama)}.",
                command,
            )
        if name in ("renderer", "parser") and args not in (KNOWN_RENDERERS if name == "renderer" else KNOWN_PARSERS):
            yield finding_at("MF311", f"Ollama has no {name} {args!r}.", command)
        if name == "requires":
            try:
                create_request([command])
            except RequestError as error:
                yield finding_at("MF312", f"Ollama says: {error}", command)
        if name == "template":
            try:
                undefined = gotemplate.undefined_templates(gotemplate.parse_template(args))
                if undefined:
                    yield finding_at("MF315", f"nothing defines the template {undefined[0]!r}.", command)
            except GoTemplateError as error:
                yield finding_at("MF314", f"TEMPLATE does not parse: {error}.", command)
        if name in DEPRECATED:
            yield finding_at("MF304", f"{name} is deprecated and has no effect.", command)
        elif name not in ("model", "adapter", "draft", "renderer", "parser", "requires", *_TEXTS):
            yield from _parameter(command)
        if name in ("system", "message", "model") and re.search(r"\s#\s", args) and "\n" not in args:
            yield finding_at("MF305", f"{args[args.index('#') :][:30]!r} is part of the value, not a comment.", command)
        if name in ("system", "message", "stop") and re.search(r"\\[nt]", args):
            yield finding_at("MF307", f"{name} has an escape that Ollama does not read as one.", command)
        if name not in ("model", "stop", "license", "message", "adapter"):
            if name in seen:
                yield finding_at("MF308", f"line {command.line} replaces this {name.upper()}.", seen[name])
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
            yield finding_at("MF303", f"Ollama says: {error}{hint}.", command)
        else:
            yield finding_at("MF302", f"Ollama says: {error}.", command)


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
