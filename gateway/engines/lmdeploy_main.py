"""`python -m lmdeploy` with the server's key from the environment, and uvloop in both of its processes.

LMDeploy 0.18 takes its key on the command line only, which every user of the machine can read; this process adds it to
its arguments after it was started.

Its engine process answers a call for every piece of every answer in the thread that also feeds the GPU, on asyncio's
own event loop. multiprocessing's spawn imports the main module of its parent, which is this one, in that process too,
so the loop chosen here is its loop as well (what it brings: docs/benchmarks.md).
"""

from __future__ import annotations

import asyncio
import os
import runpy
import sys

import uvloop

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

if __name__ == "__main__":
    sys.argv += ["--api-keys", os.environ.pop("LENSMITH_ENGINE_KEY")]
    # Without alter_sys this module stays the main one.
    runpy.run_module("lmdeploy", run_name="__main__")
