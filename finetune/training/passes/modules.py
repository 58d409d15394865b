"""Passes by the models' own modules, under autograd."""

from __future__ import annotations

from typing import Any

from finetune.families.batch import Batch
from finetune.training.parallel import no_sync


class ModulePasses:
    """What the models' modules compute, under autograd. parallel: the loss as DDP or FSDP have wrapped it."""

    frees_gradients = True

    def __init__(self, parallel: Any, autocast: Any, scaler: Any, processes: int) -> None:
        self.parallel, self.autocast, self.scaler, self.processes = parallel, autocast, scaler, processes

    def learn(self, batch: Batch, images: Any, share: float, last: bool) -> Any:
        """Adds a micro-batch's gradients to the parameters' `.grad`; its loss times `share`, a float64 tensor.

        last: whether it is the last of the optimiser step.
        """
        with no_sync(self.parallel, last):
            with self.autocast:
                loss = self.parallel(batch, images)
            # DDP and FSDP take the mean over the processes where the sum is wanted.
            self.scaler.scale(loss * (share * self.processes)).backward()
        return loss.detach().double() * share
