"""Work spread over processes, its results in order."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from finetune.errors import FinetuneError

Task = TypeVar("Task")
Result = TypeVar("Result")
MAX_PROCESSES = 16
FEW_TASKS = 24  # are done here sooner than a process has started


def processes_for(wanted: int | None) -> int:
    """How many processes to start: as many as are `wanted`, else one a core, shared by torchrun's."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return wanted or max(1, min(cores, MAX_PROCESSES))


def spread(
    work: Callable[[Any, Task], Result],
    state: Callable[[], Any],
    tasks: Iterable[Task],
    wanted: int | None = None,
    here: Any = None,
) -> Iterator[Result]:
    """work(state(), task) of every task, in order.

    Where there are more than a few, processes do them, each with a state of its own, and only so many are on their
    way at once that memory does not grow with the number of tasks. wanted: how many processes; None: by the cores;
    here: the state in this process, in place of a new one. Raises FinetuneError if one of them dies.
    """
    tasks = iter(tasks)
    first = list(islice(tasks, FEW_TASKS))
    count = processes_for(wanted)
    if len(first) < FEW_TASKS or count == 1:
        mine = state() if here is None else here
        with _old_objects_at_rest():
            for task in chain(first, tasks):
                yield work(mine, task)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's and the tokenizer's threads half alive
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(work, state))
    coming: deque[Future[Result]] = deque()
    try:
        with _old_objects_at_rest():
            for task in chain(first, tasks):
                coming.append(pool.submit(_do, task))
                if len(coming) > 2 * count:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
    except BrokenProcessPool:
        raise FinetuneError(
            "A process that read rows has died, most likely as memory ran out; set preprocessing_num_workers: 1."
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _old_objects_at_rest() -> Iterator[None]:
    """The garbage collector passes over what is there already: torch, transformers and a tokenizer are a million
    objects, and going through them again and again is a quarter of the time that rows take."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


_work: Callable[[Any], Any]  # of this process, if it is one that `spread` has started


def _begin(work: Callable[[Any, Any], Any], state: Callable[[], Any]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    mine = state()
    gc.freeze()  # for as long as the process lives
    _work = lambda task: work(mine, task)  # noqa: E731


def _do(task: Any) -> Any:
    return _work(task)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
