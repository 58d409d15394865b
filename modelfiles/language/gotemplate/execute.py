"""Runs a parsed template on plain Python values."""

from __future__ import annotations

from typing import Any

from modelfiles.language.gotemplate.errors import MAX_DEPTH, GoTemplateError
from modelfiles.language.gotemplate.functions import FUNCTIONS, to_text, truth
from modelfiles.language.gotemplate.nodes import (
    Action,
    Branch,
    Call,
    Chain,
    Function,
    Jump,
    Literal,
    Node,
    Operand,
    Pipe,
    Template,
    Text,
    Variable,
)  # fmt: skip

MAX_OUTPUT = 10_000_000  # characters, and turns of a range over a number


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


Scopes = list[dict[str, Any]]


def execute(template: Template, data: Any) -> str:
    """The template's output for `data`. Raises GoTemplateError."""
    run = _Run(template)
    run.nodes(template.nodes, data, [{"$": data}])
    return "".join(run.output)


class _Run:
    """One execution: the output so far, and how many templates have called one another."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.output: list[str] = []
        self.length = self.depth = 0

    def nodes(self, nodes: list[Node], dot: Any, scopes: Scopes) -> None:
        for node in nodes:
            if isinstance(node, Text):
                self.write(node.text)
            elif isinstance(node, Action):
                value = evaluate(node.pipe, dot, scopes)
                if node.pipe.variables:
                    _assign(node.pipe, value, scopes)
                else:
                    self.write("<no value>" if value is None else to_text(value))
            elif isinstance(node, Jump):
                raise _Break if node.kind == "break" else _Continue
            elif isinstance(node, Call):
                self.call(node, dot, scopes)
            elif node.kind == "range":
                self.range(node, dot, scopes)
            else:
                value = evaluate(node.pipe, dot, scopes)
                inner = [*scopes, {name: value for name in node.pipe.variables if node.pipe.declares}]
                if node.pipe.variables and not node.pipe.declares:
                    _assign(node.pipe, value, scopes)
                if truth(value):
                    self.nodes(node.body, value if node.kind == "with" else dot, inner)
                else:
                    self.nodes(node.otherwise, dot, inner)

    def write(self, text: str) -> None:
        self.output.append(text)
        self.length += len(text) + 1  # an endless loop of empty texts ends too
        if self.length > MAX_OUTPUT:
            raise GoTemplateError("the output is too long")

    def call(self, node: Call, dot: Any, scopes: Scopes) -> None:
        if node.name not in self.template.defined:
            raise GoTemplateError(f'template "{node.name}" not defined')
        value = evaluate(node.pipe, dot, scopes) if node.pipe else None
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise GoTemplateError("templates call one another too deeply")
        self.nodes(self.template.defined[node.name], value, [{"$": value}])
        self.depth -= 1

    def range(self, node: Branch, dot: Any, scopes: Scopes) -> None:
        items = _items(evaluate(node.pipe, dot, scopes))
        names = node.pipe.variables
        for key, item in items:
            values = (key, item) if len(names) == 2 else (item,)
            inner: Scopes = [*scopes, dict(zip(names, values, strict=False)) if node.pipe.declares else {}]
            if not node.pipe.declares:
                for name, value in zip(names, values, strict=False):
                    _set(name, value, scopes)
            try:
                self.nodes(node.body, item, inner)
            except _Continue:
                continue
            except _Break:
                break
        if not items:
            self.nodes(node.otherwise, dot, [*scopes, {}])


def _items(value: Any) -> list[tuple[Any, Any]]:
    """What range goes over: (key or index, element)."""
    if isinstance(value, dict):
        return sorted(value.items())
    if isinstance(value, list):
        return list(enumerate(value))
    if type(value) is int and value <= MAX_OUTPUT:
        return [(i, i) for i in range(value)]
    if value is None:
        return []
    raise GoTemplateError(f"range can't iterate over {to_text(value)[:40]}")


def _assign(pipe: Pipe, value: Any, scopes: Scopes) -> None:
    if pipe.declares:
        scopes[-1][pipe.variables[0]] = value
    else:
        _set(pipe.variables[0], value, scopes)


def _set(name: str, value: Any, scopes: Scopes) -> None:
    for scope in reversed(scopes):
        if name in scope:
            scope[name] = value
            return
    raise GoTemplateError(f"undefined variable {name}")


def evaluate(pipe: Pipe, dot: Any, scopes: Scopes) -> Any:
    """The value of a pipeline: each command's result is the last argument of the next one."""
    value: Any = None
    for index, (first, *arguments) in enumerate(pipe.commands):
        piped = [value] if index else []
        if isinstance(first, Function):
            value = _call_function(first.name, arguments, piped, dot, scopes)
        elif arguments or index:
            raise GoTemplateError(f"can't give arguments to {first}")
        else:
            value = _value(first, dot, scopes)
    return value


def _call_function(name: str, arguments: list[Operand], piped: list[Any], dot: Any, scopes: Scopes) -> Any:
    if name in ("and", "or"):  # these two stop at the first argument that decides
        value: Any = None
        for argument in arguments:
            value = _value(argument, dot, scopes)
            if truth(value) is (name == "or"):
                return value
        return piped[0] if piped else value
    values = [_value(argument, dot, scopes) for argument in arguments] + piped
    try:
        return FUNCTIONS[name](*values)
    except (TypeError, ValueError, LookupError) as error:
        raise GoTemplateError(f"error calling {name}: {error}") from None


def _value(operand: Operand, dot: Any, scopes: Scopes) -> Any:
    names: tuple[str, ...] = ()
    if isinstance(operand, Literal):
        return operand.value
    if isinstance(operand, Function):
        return _call_function(operand.name, [], [], dot, scopes)
    if isinstance(operand, Pipe):
        return evaluate(operand, dot, scopes)
    if isinstance(operand, Variable):
        scope = next((scope for scope in reversed(scopes) if operand.name in scope), None)
        if scope is None:
            raise GoTemplateError(f"undefined variable {operand.name}")
        value, names = scope[operand.name], operand.names
    elif isinstance(operand, Chain):
        value, names = _value(operand.operand, dot, scopes), operand.names
    else:
        value, names = dot, operand.names
    for name in names:
        if value is not None and not isinstance(value, dict):
            raise GoTemplateError(f"can't evaluate field {name} in {to_text(value)[:40]!r}")
        value = value.get(name) if value else None
    return value
