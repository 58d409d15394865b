"""What is remembered and what is done instead where work cannot be captured; that graphs do the work needs a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from finetune.compute.graphs import Graphs

GPU = torch.device("cuda", 0)


class Recorded:
    """A graph of a work, as a CUDA graph is to its user."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The works that were captured."""
    works: list[Any] = []

    def capture(self: Graphs, work: Callable[[], None]) -> Recorded:
        works.append(work)
        return Recorded(work)

    monkeypatch.setattr(Graphs, "_captured", capture)
    return works


def test_work_of_the_same_key_is_captured_once_and_what_was_used_last_is_remembered(captured: list[Any]) -> None:
    done: list[str] = []
    graphs = Graphs(GPU, 2)
    for key in "abacab":
        graphs.run(key, lambda key=key: done.append(key))  # type: ignore[misc]
    assert done == list("abacab")
    assert len(captured) == 4, "b was forgotten for c, and captured again"


@pytest.mark.parametrize(("device", "kept"), [(torch.device("cpu"), 4), (GPU, 0)])
def test_without_graphs_the_work_is_done_as_it_is(captured: list[Any], device: torch.device, kept: int) -> None:
    done: list[int] = []
    graphs = Graphs(device, kept)
    graphs.run("a", lambda: done.append(1))
    assert (done, captured, graphs.works) == ([1], [], False)


def test_after_a_failure_the_work_is_done_without_graphs_and_the_reason_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Graphs, work: Callable[[], None]) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(Graphs, "_captured", fail)
    done: list[int] = []
    reasons: list[RuntimeError] = []
    graphs = Graphs(GPU, 4, failed=reasons.append)
    for number in range(3):
        graphs.run("a", lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == [0, 1, 2]
    assert [str(reason) for reason in reasons] == ["no memory is left"]


def test_a_failure_gives_back_the_memory_of_all_graphs(captured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They share it, so that none of it is free while one of them is there; the others are captured again."""
    other, graphs = Graphs(GPU, 4), Graphs(GPU, 4)
    other.run("a", lambda: None)

    def fail(self: Graphs, work: Callable[[], None]) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    with monkeypatch.context() as patch:
        patch.setattr(Graphs, "_captured", fail)
        graphs.run("b", lambda: None)
    other.run("a", lambda: None)
    assert len(captured) == 2
    assert (graphs.works, other.works) == (False, True)
