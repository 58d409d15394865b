"""`python -m lmdeploy` with the server's key from the environment, uvloop, and fewer garbage collections.

LMDeploy 0.18 takes its key on the command line only, which every user of the machine can read; this process adds it to
its arguments after it was started.

Its engine process answers a call for every piece of every answer in the thread that also feeds the GPU, so whatever
else that thread does delays every answer:

- asyncio's own event loop: uvloop takes less of its time;
- full garbage collections of the 468,000 objects that are there once a model is loaded, 240 ms each. LMDeploy asks for
  one, and for malloc_trim, after every 128 requests with pictures. What is there when the event loop is made, after the
  model was loaded, stays for the life of the process, so the collector need not look at it again; and the request comes
  rarely. Set LMDEPLOY_MULTIMODAL_SESSION_TRIM_COUNT for another interval;
- what the modules in levers/ replace.

multiprocessing's spawn imports the main module of its parent, which is this one, in the engine process too, so all this
holds there as well. docs/benchmarks.md has what it brings.
"""

from __future__ import annotations

import asyncio
import gc
import os
import runpy
import sys

import uvloop

from gateway.engines.startup import levers

# Sessions with pictures between two collections that LMDeploy asks for; its own default is 128.
os.environ.setdefault("LMDEPLOY_MULTIMODAL_SESSION_TRIM_COUNT", "4096")


class FreezingPolicy(uvloop.EventLoopPolicy):  # type: ignore[misc] # uvloop leaves its type open
    """uvloop's event loops; what lives before one is made is left out of all later garbage collections."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        gc.collect()
        gc.freeze()
        loop: asyncio.AbstractEventLoop = super().new_event_loop()
        return loop


asyncio.set_event_loop_policy(FreezingPolicy())
levers.pull(engine_process=__name__ != "__main__")

if __name__ == "__main__":
    sys.argv += ["--api-keys", os.environ.pop("LENSMITH_ENGINE_KEY")]
    # Without alter_sys this module stays the main one.
    runpy.run_module("lmdeploy", run_name="__main__")
