"""What `check` has found: printed as it comes, and what would keep training from starting kept for the verdict."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape


class Report:
    """Prints to the console. problems: what would keep training from starting, in the order of its finding."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.problems: list[str] = []

    def say(self, text: str) -> None:
        """A fact; rich's markup is read."""
        self.console.print(text, highlight=False)

    def warn(self, text: str) -> None:
        """What training would do, and the user should know."""
        self.say(f"[yellow]Warning:[/] {escape(text)}")

    def error(self, text: str, hidden: bool = False) -> None:
        """What would keep training from starting. hidden: counted, but not printed."""
        self.problems.append(text)
        if not hidden:
            self.say(f"[red]Error:[/] {escape(text)}")

    def verdict(self) -> bool:
        """Prints and returns whether training would start; if not, what to mend first."""
        if not self.problems:
            self.say("[green]Would start.[/]")
            return True
        others = f" ({len(self.problems) - 1:,} more above.)" if len(self.problems) > 1 else ""
        self.say(f"[red]Would not start.[/] Mend first: {escape(self.problems[0])}{others}")
        return False
