"""The tree of a parsed template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Literal:
    """A number, string, character, true, false or nil."""

    value: Any


@dataclass(frozen=True)
class Field:
    """`.A.B`; `.` has no names."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variable:
    """`$x.A.B`."""

    name: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Function:
    name: str


@dataclass(frozen=True)
class Chain:
    """Fields of a result: `(index .List 1).A`."""

    operand: Function | Pipe
    names: tuple[str, ...]


@dataclass(frozen=True)
class Pipe:
    """`[$a[, $b] :=|=] command | command ...`. A command is a list of operands; variables: what it sets."""

    commands: list[list[Operand]]
    variables: tuple[str, ...] = ()
    declares: bool = False


Operand = Literal | Field | Variable | Function | Chain | Pipe


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Action:
    """{{ pipe }}"""

    pipe: Pipe


@dataclass(frozen=True)
class Branch:
    """{{ if|range|with pipe }} body {{ else }} otherwise {{ end }}"""

    kind: str
    pipe: Pipe
    body: list[Node]
    otherwise: list[Node]


@dataclass(frozen=True)
class Jump:
    """{{ break }} or {{ continue }}"""

    kind: str


@dataclass(frozen=True)
class Call:
    """{{ template "name" pipe }}; without a pipe the template runs on nil."""

    name: str
    pipe: Pipe | None


Node = Text | Action | Branch | Jump | Call


@dataclass(frozen=True)
class Template:
    """The nodes of the text itself, and of each {{ define }} and {{ block }} by name."""

    nodes: list[Node]
    defined: dict[str, list[Node]] = field(default_factory=dict)


def fields(template: Template) -> set[str]:
    """The names of all fields that the template mentions, such as {"Messages", "Role"}."""
    return {name for operand in _operands(template) for name in getattr(operand, "names", ())}


def undefined_templates(template: Template) -> list[str]:
    """The names of called templates that nothing defines: parsing accepts them, running fails."""
    return sorted({node.name for node in _walk(template) if isinstance(node, Call)} - template.defined.keys())


def _walk(template: Template) -> Iterator[Node]:
    waiting = [*template.nodes, *(node for nodes in template.defined.values() for node in nodes)]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, Branch):
            waiting += [*node.body, *node.otherwise]


def _operands(template: Template) -> Iterator[Operand]:
    waiting: list[Operand] = []
    for node in _walk(template):
        if isinstance(node, (Action, Branch, Call)) and node.pipe is not None:
            waiting.append(node.pipe)
    while waiting:
        operand = waiting.pop()
        yield operand
        if isinstance(operand, Pipe):
            waiting += [inner for command in operand.commands for inner in command]
        elif isinstance(operand, Chain):
            waiting.append(operand.operand)
