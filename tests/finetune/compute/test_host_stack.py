"""A stack in host memory gives back what was put on it, whatever is freed or written over meanwhile."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from finetune.compute.host_stack import HostMemory, HostStack


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("shape", [(2, 64, 32), (1, 3, 32)])
def test_what_was_put_on_it_comes_back(count: int, shape: tuple[int, ...]) -> None:
    memory = HostMemory(count, 2 * 64 * 32, torch.float16, torch.device("cpu"))
    for _ in range(3):
        expected = [torch.randn(shape, dtype=torch.float16) for _ in range(count)]
        with HostStack(memory) as stack:
            for x in expected:
                stack.append(x.clone())
            for x in reversed(expected):
                assert torch.equal(stack.pop(), x)


def test_only_the_last_tensor_is_held_where_it_is() -> None:
    memory = HostMemory(5, 8, torch.float32, torch.device("cpu"))
    tensors = [torch.full((8,), float(n)) for n in range(5)]
    with HostStack(memory) as stack:
        for x in tensors:
            stack.append(x)
        for x in tensors:
            x.zero_()
        assert [float(stack.pop()[0]) for _ in tensors] == [0.0, 3.0, 2.0, 1.0, 0.0]


class Stream:
    """A stream whose events say how much was given to it before; `seen` is how much of `other` it has waited for."""

    def __init__(self) -> None:
        self.given = self.seen = 0

    def record_event(self) -> int:
        self.given += 1
        return self.given

    def wait_event(self, event: int) -> None:
        self.seen = max(self.seen, event)

    def wait_stream(self, other: Stream) -> None:
        """What is given from here on runs after it, and another stream has to wait for it."""
        self.given += 1


@pytest.mark.parametrize("steps", range(11))
def test_after_it_no_copy_is_under_way_whenever_an_error_ended_it(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """A CUDA graph could not be captured otherwise, nor its capture be given up."""
    main, copies = Stream(), Stream()
    memory = HostMemory(5, 8, torch.float32, torch.device("cpu"))
    memory.copies = copies
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())

    def end_early() -> None:
        with HostStack(memory) as stack:
            for name in [*(["append"] * 5), *(["pop"] * 5)][:steps]:
                stack.append(torch.ones(8)) if name == "append" else stack.pop()
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        end_early()
    assert main.seen == copies.given
    assert (copies.given > 0) == (steps > 0)
