"""Reads `gateway.yaml`: a mistake is told with file, line, column and what to write instead."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from gateway.config.schema import Config, ConfigError

MAX_BYTES = 1_000_000
# Aliases (`*name`) let a small file stand for a huge one.
MAX_VALUES = 100_000
MOST_TOLD = 10

Place = tuple[int, int]  # line and column, both from 1
Where = tuple[str | int, ...]


class ConfigFile:
    """A configuration file and where in it each value stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: dict[Where, Place] = {}
        self._values: dict[Where, Place] = {}

    def read(self) -> Config:
        """The configuration in the file as it is now; paths in it are relative to the file.

        Raises ConfigError with a line for each problem.
        """
        data = self._parse(self._text())
        try:
            return Config.model_validate(data, context={"folder": self.path.absolute().parent})
        except ValidationError as error:
            told = sorted({self._told(problem) for problem in error.errors()})[:MOST_TOLD]
            raise ConfigError("\n".join(f"{self._at(place)}: {words}" for place, words in told)) from None

    def told(self, error: ConfigError) -> ConfigError:
        """The error with its place in the file before it."""
        return ConfigError(f"{self._at(self._nearest(self._values, error.where))}: {error}")

    def _text(self) -> str:
        try:
            with open(self.path, "rb") as file:
                raw = file.read(MAX_BYTES + 1)
            if len(raw) > MAX_BYTES:
                raise ConfigError(f"{self.path} has more than {MAX_BYTES} bytes; it can't be a configuration.")
            return raw.decode()
        except FileNotFoundError:
            raise ConfigError(f"{self.path} does not exist; docs/gateway.md shows what to write there.") from None
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path} is not UTF-8 text.") from None

    def _parse(self, text: str) -> Any:
        self._keys, self._values = {(): (1, 1)}, {(): (1, 1)}
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            if node is None:
                raise ConfigError(f"{self.path} is empty; docs/gateway.md shows what to write there.")
            for count, _ in enumerate(self._walk(node, ())):
                if count > MAX_VALUES:
                    raise ConfigError(f"{self.path} has more than {MAX_VALUES} values; it can't be a configuration.")
            return loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f"{self.path}:{mark.line + 1}:{mark.column + 1}" if mark else str(self.path)
            raise ConfigError(f"{place}: not YAML: {error.problem or error.context}.") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.path}: not YAML: {str(error).splitlines()[0]}.") from None
        except RecursionError:
            raise ConfigError(f"{self.path}: not a configuration: it is nested too deeply.") from None

    def _walk(self, node: yaml.Node, where: Where) -> Iterator[None]:
        """Note the place of every value. Raises ConfigError for a key that stands twice in a mapping."""
        yield
        self._values[where] = _place(node)
        if isinstance(node, yaml.SequenceNode):
            for at, child in enumerate(node.value):
                self._keys[(*where, at)] = _place(child)
                yield from self._walk(child, (*where, at))
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, child in node.value:
                name = str(key.value)
                if name in seen and name != "<<":
                    raise ConfigError(f"{self._at(_place(key))}: '{name}' is already set above; remove one of them.")
                seen.add(name)
                self._keys[(*where, name)] = _place(key)
                yield from self._walk(child, (*where, name))

    def _at(self, place: Place) -> str:
        return f"{self.path}:{place[0]}:{place[1]}"

    def _nearest(self, places: dict[Where, Place], where: Where) -> Place:
        """The place of a value, or of the nearest one around it that is in the file."""
        while where not in places:
            where = where[:-1]
        return places[where]

    def _told(self, problem: Any) -> tuple[Place, str]:
        """One of pydantic's errors, where it is and in words for the operator."""
        where: Where = ()
        for part in problem["loc"]:
            where = (*where, part if (*where, part) in self._keys else str(part))  # a key that isn't text: 7
        kind, given = problem["type"], problem["input"]
        if where and where[-1] == "[key]":
            return self._nearest(self._keys, (*where[:-2], str(where[-2]))), "a name must be text; put it in quotes."
        if kind == "extra_forbidden":
            near = difflib.get_close_matches(str(where[-1]), _fields(where[:-1]), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(_fields(where[:-1]))}."
            return self._nearest(self._keys, where), f"unknown key '{where[-1]}'; {hint}"
        if kind == "missing":
            return self._nearest(self._keys, where[:-1]), f"{_name(where[:-1])} lacks '{where[-1]}'."
        place = self._nearest(self._values, where)
        if kind == "value_error":
            return place, str(problem["ctx"]["error"]).rstrip(".") + "."
        if kind == "literal_error":
            allowed = str(problem["ctx"]["expected"])
            near = difflib.get_close_matches(str(given), allowed.replace("'", "").split(" or "), n=1)
            return place, f"{_name(where)} must be {allowed}{f'; did you mean {near[0]}?' if near else '.'}"
        return place, f"{_name(where)} {WORDS.get(kind) or problem['msg'].replace('Input should', 'must')}."


WORDS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a list of 'key: value' lines",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_type": "must be a list of 'key: value' lines",
    "path_type": "must be a path",
    "string_type": "must be text; put it in quotes",
    "too_short": "must not be empty",
}


def _name(where: Where) -> str:
    named = [part for part in where if isinstance(part, str)]
    return f"'{named[-1]}'" if named else "the file"


def _place(node: yaml.Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _fields(where: Where) -> list[str]:
    """The keys that may stand at a place of the file."""
    found: Any = Config
    for part in where:
        if isinstance(found, type) and issubclass(found, BaseModel):
            found = found.model_fields[str(part)].annotation
        else:  # a list's or a mapping's values
            found = typing.get_args(found)[-1]
    return list(found.model_fields)
