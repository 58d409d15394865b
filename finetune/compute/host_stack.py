"""Layers' inputs between the forward and the backward pass, in host memory, where there is more room than on a GPU.

Each is copied there while the next layer is computed, and back while the layer after it is differentiated, as in
Unsloth's gradient checkpointing. So the GPU holds a few of them instead of all.
"""

from __future__ import annotations

from typing import Any

import torch

HOST_SHARE = 0.25  # of the host's free memory, for tensors that wait there


def fits_host(count: int, numbers: int, itemsize: int, free: float) -> bool:
    """Whether a stack of `count` tensors of so many numbers has room in a host with `free` bytes."""
    # Pinned memory is given out in powers of two.
    return 2 * count * numbers * itemsize <= HOST_SHARE * free


class HostMemory:
    """Room for a stack of `count` tensors of up to `numbers` elements; one stack is in use at a time.

    The last tensor stays where it is, as it is wanted at once. On a CPU the others are copied too, one after the other.
    Raises RuntimeError if host memory cannot be pinned for a GPU.
    """

    def __init__(self, count: int, numbers: int, dtype: torch.dtype, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.copied = max(0, count - 1)
        self.host = torch.empty(self.copied, numbers, dtype=dtype, pin_memory=on_gpu)
        self.places = torch.empty(2, numbers, dtype=dtype, device=device)
        self.copies = torch.cuda.Stream(device) if on_gpu else None


class HostStack:
    """`count` times `append`, then as often `pop`, within `with`; also while a CUDA graph is captured.

    A tensor is freed when its copy has ended, and a place is written when what it held was used. One stream waits for
    the other for that, never Python. After the `with` no copy is under way, also where an error ended it: else the
    capture of a graph could not end either, and places would be written that are freed already.
    """

    def __init__(self, memory: HostMemory) -> None:
        self.memory, self.size = memory, 0
        self.shape: Any = None
        self.last: Any = None
        self.leaving: list[tuple[Any, Any]] = []  # copies under way to host memory: their end, and what is copied
        self.coming: Any = None  # the end of the copy back, if one is under way

    def __enter__(self) -> HostStack:
        return self

    def __exit__(self, *error: object) -> None:
        self._free_all()
        self._take()

    def append(self, x: Any) -> None:
        """Keeps x, which nothing may change; all have the same shape."""
        number, self.size, self.shape = self.size, self.size + 1, x.shape
        if number == self.memory.copied:
            self.last = x
            return
        self.leaving.append((self._copied(self.memory.host[number, : x.numel()], x.view(-1)), x))
        if len(self.leaving) > 1:
            self._free()

    def pop(self) -> Any:
        """The last tensor, as it was; it is valid until the next pop."""
        self._free_all()
        self.size -= 1
        if self.size == self.memory.copied:
            x, self.last = self.last, None
        else:
            self._take()
            x = self._place(self.size)
        if self.size:
            place = self._place(self.size - 1)
            self.coming = self._copied(place.view(-1), self.memory.host[self.size - 1, : place.numel()])
        return x

    def _place(self, number: int) -> Any:
        return self.memory.places[number % 2, : self.shape.numel()].view(self.shape)

    def _free(self) -> None:
        """Lets go of the tensor whose copy began first."""
        end, _ = self.leaving.pop(0)
        self._wait(end)

    def _free_all(self) -> None:
        while self.leaving:
            self._free()

    def _take(self) -> None:
        """Waits for the copy back, if there is one."""
        if self.coming is not None:
            self._wait(self.coming)
            self.coming = None

    def _copied(self, target: Any, source: Any) -> Any:
        """Copies, after all that the main stream was given before; the end of it."""
        copies = self.memory.copies
        if copies is None:
            return target.copy_(source)
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            target.copy_(source, non_blocking=True)
            return copies.record_event()

    def _wait(self, end: Any) -> None:
        if self.memory.copies is not None:
            torch.cuda.current_stream().wait_event(end)
