"""Command lines of Python processes that we start."""

from __future__ import annotations

import sys

# `python -m` looks for modules in the current folder first, where a user may have a finetune.py of their own, and
# `-P`, which does not, is newer than Python 3.10.
_RUN = (
    "import sys; sys.path[:] = [folder for folder in sys.path if folder]; del sys.argv[0]; import runpy; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def module_command(module: str, python: str = sys.executable) -> list[str]:
    """What runs `module` as `python -m` does, whatever lies in the current folder; its arguments are to follow."""
    return [python, "-c", _RUN, module]
