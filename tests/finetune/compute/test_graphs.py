"""What is remembered and what is done instead where work cannot be captured; that graphs do the work needs a GPU."""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    reasons: list[BaseException] = []
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


class Generator:
    """As one of a GPU: what it is in a capture is lost with its state."""

    def __init__(self, capturing: bool = False) -> None:
        self.capturing = capturing

    def clone_state(self) -> Generator:
        return Generator()

    def graphsafe_set_state(self, other: Generator) -> None:
        self.capturing = other.capturing


class Capture:
    """torch.cuda's graphs as far as memory and errors go: a pool that was empty takes no graph, as torch asserts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs_in: Counter[int] = Counter()
        self.ended: list[int] = []
        handles = itertools.count()
        fakes = {"CUDAGraph": self.Graph, "graph": self.capture, "graph_pool_handle": lambda: next(handles)}
        fakes |= {"current_stream": lambda: None, "set_stream": lambda stream: None, "current_device": lambda: 0}
        for name, fake in (fakes | {"default_generators": [Generator()], "empty_cache": lambda: None}).items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda _, pool: self.ended.append(pool), raising=False)

    class Graph:
        def register_generator_state(self, generator: Generator) -> None:
            generator.capturing = True

        def pool(self) -> int:
            return self.handle

        def replay(self) -> None:
            """Does the work."""

    @contextmanager
    def capture(self, graph: Any, pool: int, capture_error_mode: str) -> Iterator[None]:
        assert pool not in self.graphs_in or self.graphs_in[pool] > 0
        self.graphs_in[pool] += 1
        graph.handle = pool
        weakref.finalize(graph, self.graphs_in.subtract, [pool])
        try:
            yield
        except RuntimeError:
            raise RuntimeError("capturing stream has unjoined work")  # noqa: B904


def test_graphs_share_a_pool_and_have_a_new_one_where_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Capture(monkeypatch)
    one, other = Graphs(GPU, 2), Graphs(GPU, 2)
    for graphs in (one, other):
        graphs.run("a", lambda: None)
    assert sorted(capture.graphs_in.values()) == [2]
    one = other = graphs = Graphs(GPU, 2)
    graphs.run("a", lambda: None)
    assert sorted(capture.graphs_in.values()) == [0, 1]
    assert one is other


def test_of_a_capture_that_cannot_end_the_first_error_is_told_and_torch_is_told_that_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capture, done, reasons = Capture(monkeypatch), [], []
    generator: Any = Generator()

    def work() -> None:
        done.append(1)
        if len(done) == 1:
            raise torch.OutOfMemoryError("no memory is left")

    Graphs(GPU, 2, [generator], reasons.append).run("a", work)
    assert [str(reason) for reason in reasons] == ["no memory is left"]
    assert (len(done), capture.ended) == (2, [0])
    assert not generator.capturing


class Read:
    """What a work reads."""


def test_what_a_graph_reads_lives_as_long_as_the_graph(captured: list[Any]) -> None:
    graphs = Graphs(GPU, 2)
    alive = []
    for key in "abab":
        read = Read()
        alive.append(weakref.ref(read))
        graphs.run(key, lambda: None, read)
        del read
    assert [reference() is not None for reference in alive] == [True, True, False, False], "those of the captures"
    graphs.run("c", lambda: None)
    assert [reference() is not None for reference in alive] == [False, True, False, False]


def test_where_so_many_graphs_have_no_room_fewer_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    captures: list[int] = []

    def capture(self: Graphs, work: Callable[[], None]) -> Recorded:
        if len(self.graphs) == 4:
            raise torch.OutOfMemoryError("no memory is left")
        captures.append(len(self.graphs))
        return Recorded(work)

    monkeypatch.setattr(Graphs, "_captured", capture)
    done: list[str] = []
    graphs = Graphs(GPU, 64)
    for key in "abcdeabea":
        graphs.run(key, lambda key=key: done.append(key))  # type: ignore[misc]
    assert "".join(done) == "abcdeabea"
    assert graphs.works
    assert captures == [0, 1, 2, 3, 0, 1, 2, 2, 2], "all are forgotten for e, and two remembered from then on"
