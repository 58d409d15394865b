"""Reads and writes Ollama's Modelfile language exactly as Ollama does.

The language is a small state machine over characters (Ollama's parser/parser.go; https://docs.ollama.com/modelfile).
Its traps are kept here on purpose: no escapes, comments only at the start of a line, a quoted value ends at the first
line that ends in its quote, and each character that Go's strconv.IsPrint refuses (U+3000, U+00A0, U+200D) vanishes.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from enum import Enum, auto

COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
)  # fmt: skip
ROLES = ("system", "user", "assistant")
_COMMAND_LIST = ", ".join(f'"{name}"' for name in COMMANDS[:-1]) + f', or "{COMMANDS[-1]}"'


@dataclass(frozen=True)
class Command:
    """One directive. `name` is "model" for FROM and the parameter's own name for PARAMETER, as in Ollama.

    `line` and `column` (from 1) say where it starts; they are 0 for a command that was not parsed.
    """

    name: str
    args: str
    line: int = 0
    column: int = 0

    @property
    def pair(self) -> tuple[str, str]:
        """(name, args): what the directive means, wherever it stands."""
        return self.name, self.args


class ModelfileSyntaxError(ValueError):
    """Ollama refuses the text. `ollama` is its own message; `line` and `column` (from 1) say where."""

    def __init__(self, ollama: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {ollama}")
        self.ollama, self.line, self.column = ollama, line, column


class UnrepresentableError(ValueError):
    """The value cannot be written in a Modelfile so that Ollama reads the same value back."""


class _State(Enum):
    NIL = auto()
    NAME = auto()
    VALUE = auto()
    PARAMETER = auto()
    MESSAGE = auto()
    COMMENT = auto()


class _Value:
    """The characters of a value so far, and in O(1) whether they could end here."""

    def __init__(self) -> None:
        self.characters: list[str] = []
        self.first, self.last = -1, -1  # the first and last that are not blank

    def add(self, character: str) -> None:
        if character not in " \t\r\n":
            self.last = len(self.characters)
            if self.first < 0:
                self.first = self.last
        self.characters.append(character)

    def complete(self) -> bool:
        """Whether an opened quote is closed (Ollama's unquote, on the text without blanks around it)."""
        length = self.last - self.first + 1 if self.first >= 0 else 0
        for quote in (['"'] * 3, ['"']):
            width = len(quote)
            if length >= width and self.characters[self.first : self.first + width] == quote:
                ending = self.characters[self.last - width + 1 : self.last + 1]
                return length >= 2 * width and ending == quote
        return True

    def text(self) -> str:
        text = "".join(self.characters[self.first : self.last + 1]) if self.first >= 0 else ""
        for quote in ('"""', '"'):
            if text.startswith(quote):
                return text[len(quote) : -len(quote)]
        return text


def parse(source: str | bytes) -> list[Command]:
    """The commands of a Modelfile, in order. Raises ModelfileSyntaxError where Ollama does."""
    text = _decode(source) if isinstance(source, bytes) else source.removeprefix("\ufeff")
    commands: list[Command] = []
    state, name, role = _State.NIL, "", ""
    word: list[str] = []
    value = _Value()
    line, column, ollama_line = 1, 0, 1  # Ollama counts \r\n as two lines; people do not
    start = (1, 1)
    previous = ""

    def fail(message: str, numbered: bool = True) -> ModelfileSyntaxError:
        return ModelfileSyntaxError(f"(line {ollama_line}): {message}" if numbered else message, *start)

    for character in text:
        newline, blank = character in "\r\n", character in " \t"
        if previous == "\n" or (previous == "\r" and character != "\n"):
            line, column = line + 1, 0
        column += 1
        previous = character
        ollama_line += newline
        if state is _State.NIL:
            if character == "#":
                state = _State.COMMENT
            elif not newline and not blank:
                state, start = _State.NAME, (line, column)
                word = [character] if character.isprintable() else []
        elif state is _State.COMMENT:
            if newline:
                state = _State.NIL
        elif state is _State.VALUE:
            if newline and value.complete():
                commands.append(Command(name, f"{role}: {value.text()}" if role else value.text(), *start))
                state, role = _State.NIL, ""
            elif newline or blank or character.isprintable():
                value.add(character)
        elif blank:
            found, value = "".join(word), _Value()
            word = []
            if state is _State.PARAMETER:
                state, name = _State.VALUE, found
            elif state is _State.MESSAGE:
                if found not in ROLES:
                    raise fail('message role must be one of "system", "user", or "assistant"')
                state, role = _State.VALUE, found
            elif found.lower() not in COMMANDS:
                raise fail(f"command must be one of {_COMMAND_LIST}")
            else:
                found = found.lower()
                state = {"parameter": _State.PARAMETER, "message": _State.MESSAGE}.get(found, _State.VALUE)
                name = "model" if found == "from" else found
        elif character.isascii() and (
            character.isalpha() or (state is _State.PARAMETER and (character.isdigit() or character == "_"))
        ):
            word.append(character)
        elif state is _State.NAME:
            raise fail(f"command must be one of {_COMMAND_LIST}")
        else:
            raise fail(f"unexpected EOF: {''.join(word)}", numbered=False)
    if state is _State.VALUE and value.complete():
        commands.append(Command(name, f"{role}: {value.text()}" if role else value.text(), *start))
    elif state not in (_State.NIL, _State.COMMENT):
        raise fail("unexpected EOF", numbered=False)
    if not any(command.name == "model" for command in commands):
        start = (1, 1)
        raise fail("no FROM line", numbered=False)
    return commands


def emit(commands: list[Command]) -> str:
    """The text of a Modelfile that Ollama reads back as exactly these commands. Raises UnrepresentableError.

    The text is parsed again before it is returned, so a value can never become a directive.
    """
    text = "".join(_line(command) for command in commands)
    if [command.pair for command in parse(text)] != [command.pair for command in commands]:
        raise UnrepresentableError("these values cannot stand together in a Modelfile")
    return text


def quote(value: str) -> str:
    """`value` as it must stand in a Modelfile: bare if that is enough, else between triple quotes.

    Raises UnrepresentableError naming the first character, or the line, that stands in the way.
    """
    for number, line in enumerate(value.splitlines(keepends=True), 1):
        for character in line:
            if not character.isprintable() and character not in "\t\r\n":
                raise UnrepresentableError(
                    f"line {number}: Ollama deletes U+{ord(character):04X} from Modelfiles; "
                    "remove it, or create the model with `lensmith modelfile push`, which keeps it"
                )
    *inner, _ = value.replace("\r", "\n").split("\n")
    for number, line in enumerate(inner, 1):
        if line.rstrip(" \t").endswith('"""'):
            raise UnrepresentableError(
                f'line {number}: a line that ends in """ ends the value in a Modelfile; '
                "change it, or create the model with `lensmith modelfile push`, which keeps it"
            )
    plain = value and not inner and value == value.strip(" \t") and not value.startswith('"')
    return value if plain else f'"""{value}"""'


def _line(command: Command) -> str:
    if command.name == "model":
        return f"FROM {quote(command.args)}\n"
    if command.name == "message":
        role, _, content = command.args.partition(": ")
        return f"MESSAGE {role} {quote(content)}\n"
    if command.name in COMMANDS:
        return f"{command.name.upper()} {quote(command.args)}\n"
    return f"PARAMETER {command.name} {quote(command.args)}\n"


def _decode(source: bytes) -> str:
    """UTF-8, or UTF-16 if a byte order mark says so; what cannot be decoded becomes U+FFFD, as in Go."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if source.startswith(mark):
            return source[2:].decode(encoding, errors="replace")
    return source.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="replace")
