"""Reads `gateway.yaml`. A mistake is reported with file, line, column and what to write instead."""

from __future__ import annotations

import difflib
import re
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gateway.config.schema import Config, ConfigError
from modelfiles.folder.located_yaml import KeyPath, LocatedYaml, LocatedYamlError, Location, read_located_yaml

MAX_BYTES = 1_000_000
MAX_SHOWN_ERRORS = 10


class ConfigFile:
    """A configuration file, and the line and column of each of its values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._document = LocatedYaml()

    def read(self) -> Config:
        """The configuration in the file as it is now; paths in it are relative to the file.

        Raises ConfigError with a line for each problem.
        """
        self._document = self._parse(self._text())
        try:
            return Config.model_validate(self._document.value, context={"folder": self.path.absolute().parent})
        except ValidationError as error:
            problems = sorted({self._describe(problem) for problem in error.errors()})[:MAX_SHOWN_ERRORS]
            lines = [f"{self._show(location)}: {message}" for location, message in problems]
            raise ConfigError("\n".join(lines)) from None

    def with_location(self, error: ConfigError) -> ConfigError:
        """The same error with its line and column in the file before the message."""
        return ConfigError(f"{self._show(_nearest(self._document.values, error.where))}: {error}")

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

    def _parse(self, text: str) -> LocatedYaml:
        try:
            document = read_located_yaml(text)
        except LocatedYamlError as error:
            location = self._show(error.location) if error.location else str(self.path)
            raise ConfigError(f"{location}: {error}") from None
        if document.value is None:
            raise ConfigError(f"{self.path} is empty; docs/gateway.md shows what to write there.")
        return document

    def _show(self, location: Location) -> str:
        return f"{self.path}:{location[0]}:{location[1]}"

    def _describe(self, problem: Any) -> tuple[Location, str]:
        """The location of one of pydantic's errors, and a sentence for the operator."""
        keys, values = self._document.keys, self._document.values
        path: KeyPath = ()
        for part in problem["loc"]:
            path = (*path, part if (*path, part) in keys else str(part))  # a key that isn't text: 7
        kind, given = problem["type"], problem["input"]
        if path and path[-1] == "[key]":
            return _nearest(keys, (*path[:-2], str(path[-2]))), "a name must be text; put it in quotes."
        if kind == "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), _allowed_keys(path[:-1]), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(_allowed_keys(path[:-1]))}."
            return _nearest(keys, path), f"unknown key '{path[-1]}'; {hint}"
        if kind == "missing":
            return _nearest(keys, path[:-1]), f"{_name(path[:-1])} lacks '{path[-1]}'."
        location = _nearest(values, path)
        if kind == "value_error":
            return location, str(problem["ctx"]["error"]).rstrip(".") + "."
        if kind == "literal_error":
            allowed = str(problem["ctx"]["expected"])
            near = difflib.get_close_matches(str(given), re.findall("'([^']+)'", allowed), n=1)
            return location, f"{_name(path)} must be {allowed}{f'; did you mean {near[0]}?' if near else '.'}"
        return location, f"{_name(path)} {WORDS.get(kind) or problem['msg'].replace('Input should', 'must')}."


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


def _name(path: KeyPath) -> str:
    named = [part for part in path if isinstance(part, str)]
    return f"'{named[-1]}'" if named else "the file"


def _nearest(locations: dict[KeyPath, Location], path: KeyPath) -> Location:
    """The location of a value, or of the nearest one around it that is in the file."""
    while path not in locations:
        path = path[:-1]
    return locations[path]


def _allowed_keys(path: KeyPath) -> list[str]:
    """The keys that a mapping at this path of the file may have."""
    found: Any = Config
    for part in path:
        if isinstance(found, type) and issubclass(found, BaseModel):
            found = found.model_fields[str(part)].annotation
        else:  # a list's or a mapping's values
            found = typing.get_args(found)[-1]
    return list(found.model_fields)
