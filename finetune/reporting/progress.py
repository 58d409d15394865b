"""The progress bar of long work."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WIDE = 100  # columns from which on the bar itself and the time so far have room beside the figures


def progress_bar(console: Console, name: str, figures: str) -> Progress:
    """A bar with counts, `figures` (rich markup over the task's fields), the time so far and the time left."""
    wide = console.width >= WIDE
    return Progress(
        TextColumn(name),
        *([BarColumn()] if wide else []),
        MofNCompleteColumn(),
        TextColumn(figures),
        *([TimeElapsedColumn()] if wide else []),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )
