"""A sentence about one is found as the sentence about many is."""

from __future__ import annotations

import re

import pytest

from modelfiles import counted
from studio.web.said import said


@pytest.mark.parametrize("number", [1, 2, 1204])
def test_counts_are_said_in_chinese(number: int) -> None:
    rows = counted(number, "row")
    sentences = [
        f"{rows}, 21 tokens of which 3 are labels; {counted(number, 'step')} of up to {rows}",
        f"{counted(number, 'image')}, 64x64 pixels",
        f"{counted(number, 'broken row is', 'broken rows are')} left out (bad_rows: skip).",
        f"{counted(number, 'row is', 'rows are')} held out, no image of theirs is trained on",
        f"per_device_train_batch_size: auto would be {rows} at once, keeping all activations (about 3.0 GiB), by the "
        f"estimate; on a GPU a trial of some seconds decides between it and fewer rows. A step has {rows}",
    ]
    for sentence in sentences:
        chinese = said("zh", sentence)
        assert chinese is not None, sentence
        assert f"{number:,}" in chinese
        assert not re.search(r"[a-z]+ [a-z]+", chinese.replace("bad_rows: skip", ""))
