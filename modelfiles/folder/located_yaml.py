"""Reads YAML and remembers the line and column of every value, so that an error can say where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Location = tuple[int, int]  # line and column, both from 1
KeyPath = tuple[str | int, ...]  # the keys and list indices that lead to a value

# Aliases (`*name`) let a small file stand for a huge one.
MAX_VALUES = 100_000


class LocatedYamlError(ValueError):
    """The text is not usable YAML. The message is a sentence; `location` is None if the parser gave none."""

    def __init__(self, message: str, location: Location | None = None) -> None:
        super().__init__(message)
        self.location = location


class DuplicateKeyError(LocatedYamlError):
    """A key is set twice in one mapping; `location` is that of the second one."""

    def __init__(self, name: str, location: Location) -> None:
        super().__init__(f"'{name}' is already set above; remove one of them.", location)
        self.name = name


@dataclass
class LocatedYaml:
    """A YAML document. `value` is None for an empty one."""

    value: Any = None
    keys: dict[KeyPath, Location] = field(default_factory=dict)  # where each key, or each entry of a list, begins
    values: dict[KeyPath, Location] = field(default_factory=dict)  # where each value begins


def read_located_yaml(text: str) -> LocatedYaml:
    """Parse with PyYAML's SafeLoader. Raises LocatedYamlError."""
    found = LocatedYaml(keys={(): (1, 1)}, values={(): (1, 1)})
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return found
        for count, _ in enumerate(_walk(node, (), found)):
            if count > MAX_VALUES:
                raise LocatedYamlError(f"it has more than {MAX_VALUES} values.")
        found.value = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = (mark.line + 1, mark.column + 1) if mark else None
        raise LocatedYamlError(f"not YAML: {error.problem or error.context}.", location) from None
    except yaml.YAMLError as error:
        raise LocatedYamlError(f"not YAML: {str(error).splitlines()[0]}.") from None
    except RecursionError:
        raise LocatedYamlError("it is nested too deeply.") from None
    return found


def _walk(node: yaml.Node, path: KeyPath, found: LocatedYaml) -> Iterator[None]:
    """Store the location of every key and value below `node`; yields once per value."""
    yield
    found.values[path] = _location(node)
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            found.keys[(*path, index)] = _location(child)
            yield from _walk(child, (*path, index), found)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise DuplicateKeyError(name, _location(key))
            seen.add(name)
            found.keys[(*path, name)] = _location(key)
            yield from _walk(child, (*path, name), found)


def _location(node: yaml.Node) -> Location:
    return node.start_mark.line + 1, node.start_mark.column + 1
