"""One run on several GPUs: the processes that torchrun started, a GPU each, by PyTorch's DDP or FSDP2.

    torchrun --nproc-per-node 2 -m lensmith train RECIPE

Every process reads the same rows in the same order and takes its share of each step's micro-batches, so N processes
with accumulation A learn what one process with accumulation N x A learns. Process 0 alone prints and writes.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from finetune.errors import FinetuneError
from finetune.model.structure import trains_vision
from finetune.recipe.schema import Recipe

T = TypeVar("T")


class AgreedError(FinetuneError):
    """An error that every process has raised at the same place, so that all can still do something together."""


@dataclass(frozen=True)
class World:
    """This process among the run's. rank: its number of `size`; local_size: processes of this machine."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """The sums of the values over all processes."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return [float(value) for value in summed]

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def run_on_all_ranks(self, work: Callable[[], T]) -> T:
        """Does the work in every process; all of them end, as `fail` says, if it raises FinetuneError in one."""
        try:
            return self.agree(work)
        except AgreedError as error:
            self.fail(error.message)

    def agree(self, work: Callable[[], T]) -> T:
        """Does the work in every process. Raises AgreedError in all of them if it raises FinetuneError in one."""
        error: FinetuneError | None = None
        try:
            result = work()
        except FinetuneError as caught:
            error = caught
        if self.sum(error is not None)[0]:
            messages = dict.fromkeys(found for found in self.gather(error and error.message) if found)
            raise AgreedError("\n".join(messages)) from None
        return result

    def run_on_main_rank(self, work: Callable[[], T]) -> T:
        """Does the work in process 0; every process gets its result, or ends if it raised FinetuneError."""
        done = self.run_on_all_ranks(lambda: work() if self.main else None)
        return self.gather(done)[0]  # type: ignore[return-value]

    def fail(self, message: str) -> NoReturn:
        """Ends all processes, which must all call this: process 0 with FinetuneError, the others when it has gone.

        torchrun kills what is left of a run when one process ends, so the one that speaks must be the first.
        """
        if self.main:
            raise FinetuneError(message)
        with suppress(RuntimeError):
            dist.all_reduce(torch.zeros(1))  # process 0 does not take part: this waits until it has gone
        raise SystemExit(1)


@contextmanager
def processes(timeout_seconds: int | None) -> Iterator[World]:
    """The processes that torchrun started, connected; a world of one without it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield World()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Gloo carries what lives on the CPU (losses, random states), so that no GPU waits for it.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds) if timeout_seconds else None)
    yield World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    # A DDP module that is freed after its process group ends the group's Gloo threads while it holds the interpreter's
    # lock. Such a thread may be waiting for that lock, and the process would never end.
    gc.collect()
    dist.destroy_process_group()  # not after an error: the others may be waiting for this process


def distribute(
    loss: Any, base: Any, recipe: Recipe, world: World, device: torch.device, dtype: torch.dtype, unseen: bool
) -> Any:
    """Wraps the module that computes the loss of `base` so that its gradients are the mean over all processes.

    DDP keeps the whole model in each process. With the recipe's `fsdp`, FSDP2 gives each process a share of every
    layer's weights and gathers a layer when it is needed; a frozen vision tower stays whole, as it runs apart.
    unseen: whether a batch may have no images, which leaves a trained vision tower unused. Raises FinetuneError.
    """
    if recipe.fsdp:
        return _shard(loss, base, recipe, world, device, dtype)
    if world.size == 1:
        return loss
    from torch.nn.parallel import DistributedDataParallel

    # All processes have read the same base and seeded the same adapters: there is nothing to broadcast.
    unused = unseen and trains_vision(base)
    return DistributedDataParallel(
        loss, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True, find_unused_parameters=unused
    )


def _shard(loss: Any, base: Any, recipe: Recipe, world: World, device: torch.device, dtype: torch.dtype) -> Any:
    if world.size == 1:
        raise FinetuneError("fsdp needs several processes: torchrun --nproc-per-node GPUS -m lensmith train RECIPE.")
    try:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError:
        raise FinetuneError(f"fsdp needs torch 2.7 or newer, this is {torch.__version__}.") from None
    from torch.distributed.device_mesh import init_device_mesh

    settings: dict[str, Any] = {"mesh": init_device_mesh(device.type, (world.size,))}
    if recipe.finetuning_type != "lora" and dtype != torch.float32:  # float32 weights: halve what is gathered
        settings["mp_policy"] = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    visual = base.model.visual
    trained = trains_vision(base)
    ignored = set() if trained else set(visual.parameters())
    if not trained:
        visual.to(device)
    for layer in [*base.model.language_model.layers, *(visual.blocks if trained else [])]:
        fully_shard(layer, **settings)
    fully_shard(loss, ignored_params=ignored, **settings)
    return loss


def no_sync(model: Any, last: bool) -> Any:
    """A context for one backward pass: DDP sends gradients in the last of a step only."""
    return nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """A list that gets the number of each SIGINT, SIGTERM or SIGHUP; the step that is running ends first.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, frame: stopped.append(number))
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
