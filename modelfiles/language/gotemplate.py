"""Go's text/template, as much of it as Ollama's templates use: parse it, then run it on plain Python values.

Syntax: https://pkg.go.dev/text/template. Left out, and refused by name: define, template, block, method calls, complex
numbers, printf's rarer verbs. Values print as Ollama's do: objects and lists of the API as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_OUTPUT = 10_000_000
MAX_DEPTH = 100

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)|(?P<number>[+-]?\d+(?:\.\d+)?)"""
    r"""|(?P<field>(?:\.[A-Za-z_]\w*)+)|(?P<variable>\$\w*)|(?P<word>[A-Za-z_]\w*)|(?P<symbol>:=|[|()=,.]))"""
)
_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)(?:(?<=\s)(-))?\}\}", re.DOTALL)
_CLOSERS = ("end", "else")


class GoTemplateError(ValueError):
    """The template does not parse, or cannot be run on these values."""


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


@dataclass
class Node:
    """`kind`: text, action, if, range, with, break or continue. `names`: the variables a pipeline sets."""

    kind: str
    text: str = ""
    pipe: list[list[Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    declare: bool = False
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)


# An argument of a command: ("field", [names]), ("variable", name, [names]), ("value", v), ("word", name) or
# ("pipe", commands, [names]).
Argument = tuple[Any, ...]


def parse_template(source: str) -> list[Node]:
    """The template as a tree. Raises GoTemplateError."""
    tokens = list(_pieces(source))
    position = 0

    def block(depth: int) -> tuple[list[Node], str]:
        """Nodes up to `end` or `else`, and that closing action ("" at the end of the text)."""
        nonlocal position
        if depth > MAX_DEPTH:
            raise GoTemplateError("blocks are nested too deeply")
        nodes: list[Node] = []
        while position < len(tokens):
            is_action, text = tokens[position]
            position += 1
            if not is_action:
                nodes.append(Node("text", text))
                continue
            word = (re.match(r"\w*", text) or [""])[0]
            rest = text[len(word) :].strip()
            if word in _CLOSERS:
                return nodes, text
            if word in ("if", "range", "with"):
                nodes.append(branch(word, rest, depth))
            elif word in ("break", "continue") and not rest:
                nodes.append(Node(word))
            elif word in ("define", "template", "block"):
                raise GoTemplateError(f"{{{{ {word} }}}} is not supported")
            elif text:
                nodes.append(_pipeline(Node("action"), text))
        return nodes, ""

    def branch(word: str, rest: str, depth: int) -> Node:
        if not rest:
            raise GoTemplateError(f"missing value for {word}")
        node = _pipeline(Node(word), rest)
        node.body, closer = block(depth + 1)
        if closer.startswith("else"):
            chained = re.match(r"else\s+(if|with)\s+(.*)", closer, re.DOTALL)
            if chained:
                node.otherwise = [branch(chained[1], chained[2].strip(), depth + 1)]
                return node  # `else if` shares the final `end`
            node.otherwise, closer = block(depth + 1)
        if closer != "end":
            raise GoTemplateError(f"{{{{ {word} }}}} has no {{{{ end }}}}")
        return node

    nodes, closer = block(0)
    if closer:
        raise GoTemplateError(f"unexpected {{{{ {closer} }}}}")
    return nodes


def fields(nodes: list[Node]) -> set[str]:
    """The names of all fields and variables' fields that the template mentions, such as {"Messages", "Role"}."""
    found: set[str] = set()

    def visit(pipe: list[list[Any]]) -> None:
        for command in pipe:
            for argument in command:
                if argument[0] in ("field", "variable", "pipe"):
                    found.update(argument[-1])
                if argument[0] == "pipe":
                    visit(argument[1])

    for node in nodes:
        visit(node.pipe)
        found |= fields(node.body) | fields(node.otherwise)
    return found


def execute(nodes: list[Node], data: Any) -> str:
    """The template's output for `data`. Raises GoTemplateError."""
    output: list[str] = []
    try:
        _run(nodes, data, [{"$": data}], output)
    except (_Break, _Continue):
        raise GoTemplateError("break or continue outside range") from None
    return "".join(output)


def _pieces(source: str) -> Iterator[tuple[bool, str]]:
    """(is an action, its text) in order, with {{- and -}} applied and comments gone."""
    position, trim = 0, False
    for match in _ACTION.finditer(source):
        text = source[position : match.start()]
        text = text.lstrip(" \t\r\n") if trim else text
        text = text.rstrip(" \t\r\n") if match[1] else text
        trim, position = bool(match[3]), match.end()
        if text:
            yield False, text
        action = match[2].strip(" \t\r\n")
        if not (action.startswith("/*") and action.endswith("*/")):
            yield True, action
    rest = source[position:]
    if "{{" in rest:
        raise GoTemplateError("unclosed action")
    rest = rest.lstrip(" \t\r\n") if trim else rest
    if rest:
        yield False, rest


def _pipeline(node: Node, text: str) -> Node:
    """Fills in `[$a[, $b] :=|=] command | command ...`."""
    target = re.match(r"(\$\w*)(?:\s*,\s*(\$\w*))?\s*(:?=)\s*", text)
    if target:
        node.names = [name for name in (target[1], target[2]) if name is not None]
        node.declare = target[3] == ":="
        text = text[target.end() :]
    tokens: list[tuple[str, str, bool]] = []  # kind, text, whether it touches what stands before it
    position = 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if not match:
            raise GoTemplateError(f"unexpected {text[position:].strip()[:20]!r}")
        kind = match.lastgroup or ""
        tokens.append((kind, match[kind], match.start(kind) == position))
        position = match.end()
    node.pipe, used = _commands(tokens, 0, 0)
    if used != len(tokens):
        raise GoTemplateError(f"unexpected {tokens[used][1]!r}")
    return node


def _commands(tokens: list[tuple[str, str, bool]], position: int, depth: int) -> tuple[list[list[Argument]], int]:
    """Commands from `position` to the closing parenthesis or the end."""
    if depth > MAX_DEPTH:
        raise GoTemplateError("parentheses are nested too deeply")
    commands: list[list[Argument]] = [[]]
    while position < len(tokens) and tokens[position][1:2] != (")",):
        kind, text, touches = tokens[position]
        position += 1
        argument: Argument
        if kind == "symbol" and text == "|":
            if not commands[-1]:
                raise GoTemplateError("missing value for command")
            commands.append([])
            continue
        if kind == "symbol" and text == "(":
            inner, position = _commands(tokens, position, depth + 1)
            if position >= len(tokens):
                raise GoTemplateError("unclosed left paren")
            position += 1
            argument = ("pipe", inner, [])
        elif kind == "symbol" and text == ".":
            argument = ("field", [])
        elif kind == "field":
            names = text[1:].split(".")
            if touches and commands[-1] and commands[-1][-1][0] in ("variable", "pipe"):
                last = commands[-1].pop()
                argument = (*last[:-1], [*last[-1], *names])
            else:
                argument = ("field", names)
        elif kind == "variable":
            argument = ("variable", text, [])
        elif kind == "string":
            argument = ("value", text[1:-1] if text[0] == "`" else _unescape(text))
        elif kind == "number":
            argument = ("value", float(text) if "." in text else int(text))
        elif kind == "word":
            argument = ("value", {"true": True, "false": False, "nil": None}[text]) if text in (
                "true", "false", "nil",
            ) else ("word", text)  # fmt: skip
            if argument[0] == "word" and text not in FUNCTIONS:
                raise GoTemplateError(f'function "{text}" not defined')
        else:
            raise GoTemplateError(f"unexpected {text!r}")
        commands[-1].append(argument)
    if not commands[-1]:
        raise GoTemplateError("missing value for command")
    return commands, position


def _unescape(text: str) -> str:
    try:
        value: str = json.loads(text)
    except ValueError:
        raise GoTemplateError(f"unsupported escape in {text[:40]}") from None
    return value


Scopes = list[dict[str, Any]]


def _run(nodes: list[Node], dot: Any, scopes: Scopes, output: list[str]) -> None:
    for node in nodes:
        if node.kind == "text":
            output.append(node.text)
        elif node.kind == "break":
            raise _Break
        elif node.kind == "continue":
            raise _Continue
        elif node.kind == "action":
            value = _evaluate(node.pipe, dot, scopes)
            if node.names:
                _assign(node, value, scopes)
            else:
                output.append(to_text(value))
        elif node.kind == "range":
            _range(node, dot, scopes, output)
        else:
            value = _evaluate(node.pipe, dot, scopes)
            inner = [*scopes, {}]
            if node.names:
                inner[-1][node.names[0]] = value
            if truth(value):
                _run(node.body, value if node.kind == "with" else dot, inner, output)
            else:
                _run(node.otherwise, dot, inner, output)
        if len(output) > MAX_OUTPUT:
            raise GoTemplateError("the output is too long")


def _range(node: Node, dot: Any, scopes: Scopes, output: list[str]) -> None:
    value = _evaluate(node.pipe, dot, scopes)
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = sorted(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    elif type(value) is int and value <= MAX_OUTPUT:
        items = [(i, i) for i in range(value)]
    elif value is None:
        items = []
    else:
        raise GoTemplateError(f"range can't iterate over {to_text(value)[:40]}")
    for key, item in items:
        inner = [*scopes, {}]
        if len(node.names) == 2:
            inner[-1].update({node.names[0]: key, node.names[1]: item})
        elif node.names:
            inner[-1][node.names[0]] = item
        try:
            _run(node.body, item, inner, output)
        except _Continue:
            continue
        except _Break:
            break
    if not items:
        _run(node.otherwise, dot, [*scopes, {}], output)


def _assign(node: Node, value: Any, scopes: Scopes) -> None:
    name = node.names[0]
    if node.declare:
        scopes[-1][name] = value
        return
    for scope in reversed(scopes):
        if name in scope:
            scope[name] = value
            return
    raise GoTemplateError(f"undefined variable {name}")


def _evaluate(pipe: list[list[Argument]], dot: Any, scopes: Scopes) -> Any:
    value: Any = None
    for index, command in enumerate(pipe):
        first, arguments = command[0], command[1:]
        if first[0] == "word":
            name = first[1]
            if name in ("and", "or"):  # these two stop at the first argument that decides
                value = _decide(name == "or", arguments, dot, scopes, [value] if index else [])
                continue
            values = [_argument(argument, dot, scopes) for argument in arguments] + ([value] if index else [])
            try:
                value = FUNCTIONS[name](*values)
            except (TypeError, ValueError, LookupError) as error:
                raise GoTemplateError(f"error calling {name}: {error}") from None
        elif arguments or index:
            raise GoTemplateError(f"can't give arguments to {first[1]!r}")
        else:
            value = _argument(first, dot, scopes)
    return value


def _decide(stop_at: bool, arguments: list[Argument], dot: Any, scopes: Scopes, piped: list[Any]) -> Any:
    value: Any = None
    for argument in arguments:
        value = _argument(argument, dot, scopes)
        if truth(value) is stop_at:
            return value
    return piped[0] if piped else value


def _argument(argument: Argument, dot: Any, scopes: Scopes) -> Any:
    kind = argument[0]
    if kind == "value":
        return argument[1]
    if kind == "word":
        return _evaluate([[argument]], dot, scopes)
    if kind == "variable":
        holder = next((scope for scope in reversed(scopes) if argument[1] in scope), None)
        if holder is None:
            raise GoTemplateError(f"undefined variable {argument[1]}")
        value = holder[argument[1]]
    else:
        value = dot if kind == "field" else _evaluate(argument[1], dot, scopes)
    for name in argument[-1]:
        if value is not None and not isinstance(value, dict):
            raise GoTemplateError(f"can't evaluate field {name} in {to_text(value)[:40]!r}")
        value = value.get(name) if value else None
    return value


def truth(value: Any) -> bool:
    """Go's truth: false for zero values and empty containers."""
    return bool(value)


def to_text(value: Any) -> str:
    """How a value prints. API objects print as JSON in Ollama: compact, with <, > and & escaped as Go does."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return go_json(value)
    return str(value)


def go_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _slice(value: Any, start: int = 0, end: int | None = None) -> Any:
    end = len(value) if end is None else end
    if not 0 <= start <= end <= len(value):
        raise LookupError(f"index out of range: {start}")
    return value[start:end]


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else value[key]
    return value


def _format(form: str, *values: Any) -> str:
    if re.search(r"%[^svdq%]", form):
        raise ValueError(f"printf {form!r} is not supported")
    return form.replace("%v", "%s").replace("%q", '"%s"') % tuple(map(to_text, values))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *others: first in others,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "not": lambda value: not truth(value),
    "and": lambda *values: values[-1],
    "or": lambda *values: values[-1],
    "len": lambda value: len(value.encode()) if isinstance(value, str) else len(value or []),
    "slice": _slice,
    "index": _index,
    "print": lambda *values: "".join(map(to_text, values)),
    "printf": _format,
    "json": go_json,
}
