"""Ollama versions: which came first with what (sources: its release notes and the history of the files named)."""

from __future__ import annotations

import re

Version = tuple[int, int, int]

NEWEST: Version = (0, 33, 0)  # the newest one these rules were checked against
OLDEST: Version = (0, 12, 0)  # before it there is neither RENDERER nor a VLM of the newer families

# The first version whose parser knows the directive (parser/parser.go); an older one refuses the whole Modelfile.
DIRECTIVES: dict[str, Version] = {
    "renderer": (0, 12, 0),
    "parser": (0, 12, 0),
    "requires": (0, 14, 0),
    "draft": (0, 23, 1),
}
# Since then vision runs in llama-server: GGUF pairs keep their projector, images take 1024 to 4096 tokens, and a chat
# template inside the model with more capabilities than TEMPLATE is used in its place.
LLAMA_SERVER: Version = (0, 30, 0)
# The default of repeat_penalty went from 1.1 to 1.0 here.
REPEAT_PENALTY_1_0: Version = (0, 32, 10)


def parse_version(text: str) -> Version:
    """ "0.12.7", "v0.30" or "0.33.0-rc2" as numbers. Raises ValueError."""
    match = re.fullmatch(r"v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:[-+].*)?", text.strip(), re.ASCII)
    if not match:
        raise ValueError(f"{text!r} is not an Ollama version; write it like 0.30.0")
    return int(match[1]), int(match[2]), int(match[3] or 0)


def version_text(version: Version) -> str:
    return ".".join(map(str, version))
