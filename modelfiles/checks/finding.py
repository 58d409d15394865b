"""A rule that was broken, and where."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from modelfiles.checks.rule import ERROR
from modelfiles.checks.rules import RULES
from modelfiles.language.grammar import Command


@dataclass(frozen=True)
class Finding:
    """A rule that was broken. `line` and `column` count from 1; 0 where they mean nothing."""

    rule: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0

    @property
    def severity(self) -> str:
        return RULES[self.rule].severity

    def as_json(self) -> dict[str, Any]:
        return {"severity": self.severity, **asdict(self)}

    def __str__(self) -> str:
        location = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        return f"{location + ': ' if location else ''}{self.severity} {self.rule}: {self.message}"


def exit_code(findings: list[Finding]) -> int:
    """0 for none, 1 for warnings only, 2 if there is an error."""
    severities = {finding.severity for finding in findings}
    return 2 if ERROR in severities else 1 if severities else 0


def finding_at(rule: str, message: str, command: Command | None = None) -> Finding:
    """A finding where a Modelfile's command begins."""
    return Finding(rule, message, "", command.line if command else 0, command.column if command else 0)
