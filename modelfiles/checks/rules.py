"""The one table of rules that `doctor` and `lint` check. docs/modelfile-rules.md is written from it:

    python -m modelfiles.checks.rules > docs/modelfile-rules.md

Ids are stable: a rule that goes away leaves a gap.
"""

from __future__ import annotations

from modelfiles.checks.folder_rules import FOLDER_RULES
from modelfiles.checks.modelfile_rules import MODELFILE_RULES
from modelfiles.checks.rule import ERROR, GENERATE, Rule

RULES: dict[str, Rule] = dict(sorted((FOLDER_RULES | MODELFILE_RULES).items()))


def prevents_import(rule: str) -> bool:
    """Whether Ollama cannot load a folder with this fault. MF222 is an error, but one of what answers are worth."""
    return RULES[rule].severity == ERROR and rule != "MF222"


def is_repaired(rule: str) -> bool:
    """Whether `generate` writes a stage folder without this fault."""
    return RULES[rule].fix == GENERATE


def markdown() -> str:
    """The page docs/modelfile-rules.md."""
    lines = [
        "# Modelfile rules",
        "",
        "What `lensmith modelfile doctor` (MF1xx, MF2xx, MF5xx) and `lensmith modelfile lint` (MF3xx, MF4xx) check.",
        "Both exit with 0 for no finding, 1 for warnings and 2 for errors; `--json` prints the same for programs.",
        "",
        "Written by `python -m modelfiles.checks.rules`; edit `modelfiles/checks/*_rules.py`.",
    ]
    for name, rule in RULES.items():
        lines += ["", f"## {name}: {rule.title}", "", f"*{rule.severity}*. Ollama: {rule.ollama}", "", rule.fix]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
