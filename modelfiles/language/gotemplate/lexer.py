"""Cuts a template into tokens as Go does: text, and inside {{ }} words, fields, numbers, strings and signs.

Blanks are tokens too, because Go tells `.A .B` (two arguments) from `.A.B` (a field of a field) by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from modelfiles.language.gotemplate.errors import GoTemplateError

BLANKS = " \t\r\n"
KEYWORDS = ("block", "break", "continue", "define", "else", "end", "if", "range", "template", "with")
# What may follow a field, a variable or a word without a blank in between.
_TERMINATORS = (" ", "\t", "\r", "\n", ".", ",", "|", ":", ")", "(", "")
_OPEN = re.compile(r"\{\{(-(?=[ \t\r\n]))?")
_CLOSE = re.compile(r"(?:(?<=[ \t\r\n])-)?\}\}")
_COMMENT = re.compile(r"[ \t\r\n]*/\*")
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
    r"|0[oO][0-7_]*|0[bB][01_]*|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)
_WORD = re.compile(r"\w*")
_SIGNS = {"|": "pipe", "(": "left paren", ")": "right paren", "=": "assign"}


class Token(NamedTuple):
    """kind: text, end (of an action), blank, keyword, identifier, literal, number, character, string, field,
    dot, variable, or a sign's name. text: as it stands in the template. line: from 1.
    """

    kind: str
    text: str
    line: int


def tokens(source: str) -> Iterator[Token]:
    """The tokens of a template, each action followed by an `end` token. Raises GoTemplateError."""
    position, trim = 0, False
    while position <= len(source):
        opening = _OPEN.search(source, position)
        text = source[position : opening.start() if opening else len(source)]
        line = source.count("\n", 0, position) + 1
        text = text.lstrip(BLANKS) if trim else text
        text = text.rstrip(BLANKS) if opening and opening[1] else text
        if text:
            yield Token("text", text, line)
        if not opening:
            return
        comment = _COMMENT.match(source, opening.end())
        # Only blanks that a trim marker asks for may stand before a comment.
        if comment and (opening[1] or comment.end() - comment.start() == 2):
            position, trim = _comment_end(source, comment.end())
            continue
        position = opening.end()
        while True:
            closing = _CLOSE.match(source, position)
            if closing:
                position, trim = closing.end(), len(closing[0]) == 3
                yield Token("end", closing[0], source.count("\n", 0, position) + 1)
                break
            token = _token(source, position, source.count("\n", 0, position) + 1)
            position += len(token.text)
            yield token


def _comment_end(source: str, position: int) -> tuple[int, bool]:
    """Where the text goes on after a comment, and whether blanks there are trimmed."""
    end = source.find("*/", position)
    if end < 0:
        raise GoTemplateError("unclosed comment")
    closing = re.compile(r"(?:[ \t\r\n]-)?\}\}").match(source, end + 2)
    if not closing:
        raise GoTemplateError("comment ends before closing delimiter")
    return closing.end(), len(closing[0]) > 2


def _token(source: str, position: int, line: int) -> Token:
    """The next token inside an action."""
    if position >= len(source):
        raise GoTemplateError("unclosed action")
    character = source[position]
    following = source[position + 1 : position + 2]
    if character in BLANKS:
        end = position
        while end < len(source) and source[end] in BLANKS and not _CLOSE.match(source, end):
            end += 1
        return Token("blank", source[position:end], line)
    if source.startswith(":=", position):
        return Token("declare", ":=", line)
    if character in _SIGNS:
        return Token(_SIGNS[character], character, line)
    if character in "\"`'":
        return _quoted(source, position, line)
    if character == "$" or (character == "." and not following.isdecimal()):
        name = character + (_WORD.match(source, position + 1) or [""])[0]
        kind = "variable" if character == "$" else "field" if len(name) > 1 else "dot"
        return _terminated(source, position, Token(kind, name, line))
    if character in "+-." or (character.isascii() and character.isdigit()):
        return _number(source, position, line)
    if character.isalnum() or character == "_":
        word = (_WORD.match(source, position) or [""])[0]
        kind = "keyword" if word in KEYWORDS else "literal" if word in ("true", "false", "nil") else "identifier"
        return _terminated(source, position, Token(kind, word, line))
    if character.isascii() and character.isprintable():
        return Token("comma" if character == "," else "sign", character, line)
    raise GoTemplateError(f"unrecognized character in action: U+{ord(character):04X}")


def _terminated(source: str, position: int, token: Token) -> Token:
    end = position + len(token.text)
    if source[end : end + 1] not in _TERMINATORS and not source.startswith("}}", end):
        raise GoTemplateError(f"bad character U+{ord(source[end]):04X} after {token.text!r}")
    return token


def _number(source: str, position: int, line: int) -> Token:
    text = (_NUMBER.match(source, position) or [""])[0]
    after = source[position + len(text) : position + len(text) + 1]
    if after.isalnum() or after == "_":
        raise GoTemplateError(f"bad number syntax: {text + after!r}")
    return Token("number", text, line)


def _quoted(source: str, position: int, line: int) -> Token:
    quote = source[position]
    end = position + 1
    while end < len(source) and source[end] != quote:
        if quote != "`" and source[end] == "\n":
            break
        end += 2 if source[end] == "\\" and quote != "`" else 1
    if source[end : end + 1] != quote:
        kind = {'"': "quoted string", "`": "raw quoted string", "'": "character constant"}[quote]
        raise GoTemplateError(f"unterminated {kind}")
    return Token("character" if quote == "'" else "string", source[position : end + 1], line)
