"""A stack in host memory gives back what was put on it, whatever is freed or written over meanwhile."""

from __future__ import annotations

import pytest
import torch

from finetune.compute.host_stack import HostMemory, HostStack


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("shape", [(2, 64, 32), (1, 3, 32)])
def test_what_was_put_on_it_comes_back(count: int, shape: tuple[int, ...]) -> None:
    memory = HostMemory(count, 2 * 64 * 32, torch.float16, torch.device("cpu"))
    for _ in range(3):
        stack = HostStack(memory)
        expected = [torch.randn(shape, dtype=torch.float16) for _ in range(count)]
        for x in expected:
            stack.append(x.clone())
        for x in reversed(expected):
            assert torch.equal(stack.pop(), x)


def test_only_the_last_tensor_is_held_where_it_is() -> None:
    memory = HostMemory(5, 8, torch.float32, torch.device("cpu"))
    stack = HostStack(memory)
    tensors = [torch.full((8,), float(n)) for n in range(5)]
    for x in tensors:
        stack.append(x)
    for x in tensors:
        x.zero_()
    assert [float(stack.pop()[0]) for _ in tensors] == [0.0, 3.0, 2.0, 1.0, 0.0]
