"""Names of models in Ollama: [host/][namespace/]model[:tag] (its types/model/name.go)."""

from __future__ import annotations

import re

_NAME = re.compile(
    r"(?:(?:[a-z0-9_][a-z0-9_.:-]*/)?[a-z0-9_][a-z0-9_-]*/)?[a-z0-9_][a-z0-9_.-]{0,79}(?::[a-z0-9_][a-z0-9_.-]{0,79})?",
    re.IGNORECASE | re.ASCII,
)


def is_ollama_name(name: str) -> bool:
    """Whether Ollama takes this as the name of a new model."""
    return _NAME.fullmatch(name) is not None


def suggest_ollama_name(title: str) -> str:
    """A name that Ollama takes and that reads like the title, such as a folder's name."""
    return re.sub(r"[^a-z0-9._-]+", "-", title.lower()).strip("-._")[:80] or "model"
