"""A decode step's end is seen at once; LMDeploy looks for it every millisecond, which is much of a short step.

The event loop still turns between two looks, so that requests are taken in and tokens go out meanwhile. After
`SPIN_SECONDS`, as in a prefill, it looks as rarely as LMDeploy does.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import torch
from lmdeploy.pytorch.engine.model_agent import agent

SPIN_SECONDS = 0.004  # a decode step of a model of 2B parameters takes 1.5 to 4 ms
SLEEP_SECONDS = 0.001


async def wait_for(event: Any) -> None:
    """Returns when the GPU has come to `event`."""
    end = time.monotonic() + SPIN_SECONDS
    while not event.query():  # noqa: ASYNC110, a GPU's event wakes nobody
        await asyncio.sleep(0 if time.monotonic() < end else SLEEP_SECONDS)


async def get_output_async(self: Any) -> Any:
    """As BaseModelAgent's, with another wait."""
    assert self._out_que is not None, "Please start backendground task before forward."
    out = await self._out_que.get()
    if out is None:
        return {}
    out, event = out
    await wait_for(event)
    with torch.cuda.stream(self.out_stream), torch.inference_mode(), agent.record_function("outputs_D2H"):
        event.wait()
        out = out.to_cpu()
        out.new_token_timestamp = time.time()
    self._release_completed_h2d_transfers()
    return out


def pull() -> None:
    agent.BaseModelAgent.get_output_async = get_output_async
