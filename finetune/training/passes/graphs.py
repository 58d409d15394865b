"""Passes layer by layer in CUDA graphs, where they can be had."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.markup import escape

from finetune.compute.decoder import LayeredStep, why_not
from finetune.compute.fixed_inputs import Buffers
from finetune.compute.graphs import Graphs
from finetune.compute.host_stack import HostMemory, fits_host
from finetune.encoding.encoded_rows import labels_of, lengths_of
from finetune.families.base import Feed
from finetune.families.batch import Batch
from finetune.families.features import FrozenFeatures
from finetune.families.qwen_vl import QwenFeed
from finetune.memory.layered import why_modules
from finetune.recipe.schema import Recipe
from finetune.training.dataset import TrainingData
from finetune.training.order import epoch_batches
from finetune.training.passes.modules import ModulePasses

GRAPHS = 64  # shapes of micro-batches that are remembered; the description of a step takes a few MB of the card
LOOKED_AT = 4096  # micro-batches of an epoch, to see how many shapes there are


class GraphPasses:
    """The same by `compute`'s layers, each micro-batch as one CUDA graph; without a GPU, as it comes.

    Batches that were not foreseen go through `modules`. kept_layers: see LayeredStep; feed: what makes the batches.
    Its memory is given back as soon as nothing refers to it.
    """

    frees_gradients = False  # graphs add to gradients where they are

    def __init__(
        self, base: Any, recipe: Recipe, data: TrainingData, modules: ModulePasses, kept_layers: int, console: Console,
        feed: Feed,
    ) -> None:  # fmt: skip
        self.modules, self.scaler = modules, modules.scaler
        device, dtype = base.lm_head.weight.device, base.lm_head.weight.dtype
        size = recipe.batch_size
        labels, longest = int(np.sort(labels_of(data.rows))[-size:].sum()), int(lengths_of(data.rows).max())
        assert isinstance(feed, QwenFeed)
        images = feed.images
        assert isinstance(images, FrozenFeatures)
        self.buffers = Buffers(size, longest, labels, images.levels, images.hidden, dtype, device)
        self.buffers.coarse = _shapes(self.buffers, recipe, data) > GRAPHS
        images.room = self.buffers.features
        layers = len(base.model.language_model.layers) - kept_layers
        host = _host_memory(layers, self.buffers.features[0].numel(), dtype, device)
        if host is None and layers and device.type == "cuda":
            console.print("Layers' inputs stay on the GPU: host memory has no room for them.", highlight=False)
        self.step = LayeredStep(base, kept_layers, host)
        self.factor = torch.zeros((), device=device)
        self.loss = torch.zeros((), device=device)
        for parameter in base.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        self.graphs = Graphs(device, GRAPHS, self.step.generators, partial(_warn, console))
        if self.graphs.works:  # libraries prepare themselves, as they cannot in a graph
            self.step.learn(self.buffers.blank(), self.factor)

    def learn(self, batch: Batch, images: Any, share: float, last: bool) -> Any:
        """See ModulePasses.learn."""
        if not self.buffers.fits(batch):
            return self.modules.learn(batch, images, share, last)
        inputs = self.buffers.put(batch, images)
        self.factor.copy_(self.scaler.scale(torch.full_like(self.factor, share)))
        self.step.reseed()

        def work() -> None:
            self.loss.copy_(self.step.learn(inputs, self.factor))

        self.graphs.run(inputs.shape, work)
        return self.loss.double() * share


def _shapes(buffers: Buffers, recipe: Recipe, data: TrainingData) -> int:
    """How many shapes an epoch's micro-batches have."""
    lengths, labels = lengths_of(data.rows), labels_of(data.rows)
    batches = epoch_batches(lengths, recipe.batch_size, recipe.seed, 0, recipe.group_by_length)
    some = batches[:: -(-len(batches) // LOOKED_AT)]
    return len({buffers.padded(len(rows), int(lengths[rows].max()), int(labels[rows].sum())) for rows in some})


def _warn(console: Console, error: BaseException) -> None:
    reason = escape((str(error) or type(error).__name__).splitlines()[0])
    console.print(f"[yellow]Warning:[/] training goes on without CUDA graphs: {reason}", highlight=False)


def _host_memory(layers: int, numbers: int, dtype: torch.dtype, device: torch.device) -> HostMemory | None:
    """Where the layers' inputs wait; None without a GPU, if none has to, or if the host has no room for them."""
    free = psutil.virtual_memory().available
    if device.type != "cuda" or not layers or not fits_host(layers, numbers, dtype.itemsize, free):
        return None
    try:
        return HostMemory(layers, numbers, dtype, device)
    except RuntimeError:  # the system allows no more pinned memory
        return None


def make_passes(
    base: Any, recipe: Recipe, data: TrainingData, modules: ModulePasses, kept_layers: int, console: Console, feed: Feed
) -> ModulePasses | GraphPasses:
    """CUDA graphs where they can be had, and a line that says which it is and why."""
    if base.lm_head.weight.device.type != "cuda":
        return modules
    reason = why_modules(recipe, data.folder.model_type, modules.processes) or why_not(base)
    if reason:
        console.print(f"Steps run by the model's own modules: {reason}.", highlight=False)
        return modules
    console.print("Steps run as CUDA graphs, a graph for each shape of micro-batch.", highlight=False)
    return GraphPasses(base, recipe, data, modules, kept_layers, console, feed)
