"""The names that one weight or module has in the versions of transformers.

Checkpoints keep the names of their time: Qwen2-VL's and Qwen2.5-VL's have `model.layers` and `visual`, LLaVA's,
Gemma 3's and InternVL's `language_model.model.layers`, where transformers 4.52 and later say
`model.language_model.layers` and `model.visual`. Adapters have the names of the transformers that trained them.
"""

from __future__ import annotations

RENAMED = (
    ("model.language_model.", "model."),
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
)


def names_of_all_versions(name: str) -> list[str]:
    """The names that one weight or module has in the versions of transformers, `name` first."""
    candidates = [name]
    for new, old in RENAMED:
        if name.startswith(new):
            candidates.append(old + name.removeprefix(new))
        elif name.startswith(old):
            candidates.append(new + name.removeprefix(old))
    return list(dict.fromkeys(candidates))
