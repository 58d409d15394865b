"""What a rule of `doctor` and `lint` is made of."""

from __future__ import annotations

from typing import NamedTuple

ERROR, WARNING = "error", "warning"
GENERATE = "Run `lensmith modelfile generate`: its stage folder has this repaired."


class Rule(NamedTuple):
    """What is wrong, what Ollama itself does about it (measured with 0.33 unless said), and what to do."""

    severity: str
    title: str
    ollama: str
    fix: str
