"""With this folder first in PYTHONPATH and STACKS=FILE set, a Python process counts where its threads are.

A hundred times a second every thread's innermost frames are noted; FILE.PID gets "count thread;outer;...;inner" lines
every two seconds, most frequent first. It sees threads that wait as well as those that work: compare with the CPU time
of the thread.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import Counter
from types import FrameType

FRAMES = 8


def run(path: str) -> None:
    try:
        sample(path)
    except Exception:
        with open(f"{path}.failed.{os.getpid()}", "w") as file:
            traceback.print_exc(file=file)


def sample(path: str) -> None:
    seen: Counter[str] = Counter()
    own, written = threading.get_ident(), time.monotonic()
    while True:
        time.sleep(0.01)
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, top in sys._current_frames().items():
            if ident == own:
                continue
            stack: list[str] = []
            frame: FrameType | None = top
            while frame is not None and len(stack) < FRAMES:
                code = frame.f_code
                stack.append(f"{code.co_name} ({'/'.join(code.co_filename.split('/')[-2:])}:{frame.f_lineno})")
                frame = frame.f_back
            seen[";".join([names.get(ident, "?"), *reversed(stack)])] += 1
        if time.monotonic() - written > 2:
            written = time.monotonic()
            with open(f"{path}.part.{os.getpid()}", "w") as file:
                file.writelines(f"{count} {stack}\n" for stack, count in seen.most_common(400))
            os.replace(file.name, f"{path}.{os.getpid()}")  # a reader never sees half of it


if os.environ.get("STACKS"):
    threading.Thread(target=run, args=(os.environ["STACKS"],), daemon=True, name="stack sampler").start()
