"""What `check` has found: printed as it comes, and kept for the verdict and for programs (`check --json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from finetune.errors import FinetuneError

Kind = Literal["fact", "warning", "error"]


class Report:
    """Prints to the console. problems: what would keep training from starting, in the order of its finding.

    findings: (kind, sentence) of all that was said; figures: what was counted and estimated, for `write_json`.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.problems: list[str] = []
        self.findings: list[tuple[Kind, str]] = []
        self.figures: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """A fact; rich's markup is read."""
        self.findings.append(("fact", Text.from_markup(text).plain))
        self._print(text)

    def warn(self, text: str) -> None:
        """What training would do, and the user should know."""
        self.findings.append(("warning", text))
        self._print(f"[yellow]Warning:[/] {escape(text)}")

    def error(self, text: str, hidden: bool = False) -> None:
        """What would keep training from starting. hidden: counted, but not printed."""
        self.problems.append(text)
        if not hidden:
            self.findings.append(("error", text))
            self._print(f"[red]Error:[/] {escape(text)}")

    def verdict(self) -> bool:
        """Prints and returns whether training would start; if not, what to mend first."""
        if not self.problems:
            self._print("[green]Would start.[/]")
            return True
        others = f" ({len(self.problems) - 1:,} more above.)" if len(self.problems) > 1 else ""
        self._print(f"[red]Would not start.[/] Mend first: {escape(self.problems[0])}{others}")
        return False

    def write_json(self, path: Path) -> None:
        """Writes {"starts", "problems", "findings": [{"kind", "text"}], and the figures}. Raises FinetuneError."""
        findings = [{"kind": kind, "text": text} for kind, text in self.findings]
        known = {"starts": not self.problems, "problems": self.problems, "findings": findings} | self.figures
        try:
            path.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise FinetuneError(f"--json: {path} cannot be written: {error}.") from None

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False)
