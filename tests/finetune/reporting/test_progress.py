"""The bar of long work, as a terminal shows it."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from finetune.reporting.progress import progress_bar
from finetune.training.loop import FIGURES


@pytest.mark.parametrize("width", [80, 100, 160])
def test_nothing_is_cut_off(width: int) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=width, force_terminal=True, color_system=None)
    with progress_bar(console, "training", FIGURES) as progress:
        progress.add_task("training", total=50_000, completed=12_345, loss=10.2345, lr=1.6e-3, speed=1234.0)
    last = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).splitlines() if line.strip()][-1]
    assert "…" not in last
    assert len(last.rstrip()) <= width
    for part in ("12345/50000", "loss 10.2345", "lr 1.60e-03", "1234 samples/s", "ETA"):
        assert part in last
    assert ("━" in last) == (width >= 100)
