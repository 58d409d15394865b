"""The pages' texts in English and Chinese: studio/locales/LANGUAGE/FILE.json, asked for as "file.key"."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from starlette.requests import Request

from studio.errors import StudioError

LOCALES = Path(__file__).parents[1] / "locales"
LANGUAGES = {"en": "English", "zh": "中文"}
COOKIE = "lensmith_language"


@cache
def texts(language: str) -> dict[str, str]:
    """All texts of a language by "file.key"."""
    return {
        f"{file.stem}.{key}": text
        for file in sorted((LOCALES / language).glob("*.json"))
        for key, text in json.loads(file.read_text(encoding="utf-8")).items()
    }


class Value(str):
    """What a placeholder is filled with. In English texts a format chooses the word for one or for many.

    "{count} {count:row|rows}" is "1 row" or "2 rows".
    """

    def __format__(self, words: str) -> str:
        one, bar, many = words.partition("|")
        return (one if self == "1" else many) if bar else super().__format__(words)


def translate(language: str, key: str, /, **values: object) -> str:
    """The text with its placeholders filled. Raises KeyError for a text that is missing."""
    text = texts(language)[key]
    return text.format_map({name: Value(value) for name, value in values.items()}) if values else text


def sentence(language: str, error: StudioError) -> str:
    """What an error says in a language."""
    return translate(language, error.message, **error.values) if error.message in texts(language) else error.message


def language_of(request: Request) -> str:
    """The language that was chosen, else the first one of the browser's that we have."""
    chosen = request.cookies.get(COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    for part in request.headers.get("accept-language", "").split(","):
        name = part.partition(";")[0].strip().partition("-")[0].lower()
        if name in LANGUAGES:
            return name
    return "en"
