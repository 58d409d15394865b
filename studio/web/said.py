"""What the programs say in English, in the reader's language where it is known: locales/LANGUAGE/program.json."""

from __future__ import annotations

import re
from functools import cache

from markupsafe import Markup

from studio.web.i18n import texts, translate

BEGIN = "program.said_"
LIST = "parts"  # the placeholder of a list, "weights in 4 bits 1.20, gradients 0.10", whose members are sentences
FIGURE = re.compile(r"(.+?)( [\d.]+)?")  # a member of it
PLACE = re.compile(r"\\\{(\w+)\\\}")  # a placeholder in an escaped text
NOUN = re.compile(r"\\\{\w+:(.*?)\\\|(.*?)\\\}")  # {count:row|rows} in one
DEPTH = 4  # how deep sentences stand in the places of others


def said(language: str, sentence: str, depth: int = DEPTH) -> str | None:
    """A sentence of a program in a language; None if it has no translation there."""
    if language == "en":
        return sentence
    for pattern, key in _patterns() if depth else ():
        if found := pattern.fullmatch(sentence):
            places = {name: _place(language, name, part, depth - 1) for name, part in found.groupdict().items()}
            return translate(language, key, **places)
    return None


def _place(language: str, name: str, part: str, depth: int) -> str:
    """What stands in a place of a sentence."""
    if name != LIST:
        return said(language, part, depth) or part
    members = [FIGURE.fullmatch(member) for member in part.split(", ")]
    texts_of = [(said(language, member[1], depth) or member[1]) + (member[2] or "") for member in members if member]
    return translate(language, "program.list_comma").join(texts_of)


def shown(language: str, sentence: str) -> str:
    """The same for a page: what has no translation is marked as English, for browsers and those who read aloud."""
    return said(language, sentence) or Markup('<span lang="en">{}</span>').format(sentence)


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """The sentences as expressions, those that say most themselves first."""
    sentences = {key: text for key, text in texts("en").items() if key.startswith(BEGIN)}
    keys = sorted(sentences, key=lambda key: -len(re.sub(r"\{\w+\}", "", sentences[key])))
    return [(re.compile(_expression(sentences[key]), re.DOTALL), key) for key in keys]


def _expression(sentence: str) -> str:
    return PLACE.sub(r"(?P<\1>.*?)", NOUN.sub(r"(?:\1|\2)", re.escape(sentence)))
