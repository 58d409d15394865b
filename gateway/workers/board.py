"""Memory that all workers share: how many bytes of requests each of them holds."""

from __future__ import annotations

import mmap
import os

from gateway.scheduling.byte_budget import ByteBudget, no_room

CELL = 8  # bytes


class Board:
    """A number for each worker. Each is written by its worker alone, and read by all."""

    def __init__(self, descriptor: int, workers: int) -> None:
        self.descriptor = descriptor
        self.cells = memoryview(mmap.mmap(descriptor, workers * CELL)).cast("q")

    @classmethod
    def create(cls, workers: int) -> Board:
        descriptor = os.memfd_create("lensmith-board")
        os.ftruncate(descriptor, workers * CELL)
        return cls(descriptor, workers)


class SharedByteBudget(ByteBudget):
    """The budget of all workers together, as one of them sees it; what it holds stands in its own cell.

    Without a lock: a size is written first and the sum looked at then, so that two which come at the same moment may
    both be refused, but never both be let in beyond the limit.
    """

    def __init__(self, limit: int, board: Board, worker: int) -> None:
        super().__init__(limit)
        self._cells, self._worker = board.cells, worker

    def reserve(self, size: int) -> None:
        self._cells[self._worker] += size
        if sum(self._cells) > self._limit:
            self._cells[self._worker] -= size
            raise no_room()

    def release(self, size: int) -> None:
        self._cells[self._worker] -= size
