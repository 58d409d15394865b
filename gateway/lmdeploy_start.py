"""`python -m lmdeploy` with the server's key from the environment.

LMDeploy 0.18 takes its key on the command line only, which every user of the machine can read; this process adds it to
its arguments after it was started.
"""

from __future__ import annotations

import os
import runpy
import sys

if __name__ == "__main__":
    sys.argv += ["--api-keys", os.environ.pop("LENSMITH_ENGINE_KEY")]
    runpy.run_module("lmdeploy", run_name="__main__", alter_sys=True)
