"""What Python processes that we start get: a command line, a port, a death with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable

# `python -m` looks for modules in the current folder first, where a user may have a finetune.py of their own, and
# `-P`, which does not, is newer than Python 3.10.
_RUN = (
    "import sys; sys.path[:] = [folder for folder in sys.path if folder]; del sys.argv[0]; import runpy; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def module_command(module: str, python: str = sys.executable) -> list[str]:
    """What runs `module` as `python -m` does, whatever lies in the current folder; its arguments are to follow."""
    return [python, "-c", _RUN, module]


PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_libc = ctypes.CDLL(None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def die_with_parent(parent: int) -> Callable[[], None]:
    """For Popen's preexec_fn: the child gets SIGTERM when the thread that started it ends. parent: our process id."""

    def preexec() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died between the fork and the line above
            os._exit(1)

    return preexec
