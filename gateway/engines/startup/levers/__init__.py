"""What speeds up LMDeploy 0.18's PyTorch engine, lever by lever. Where one is left out, LMDeploy's own code runs.

A lever replaces functions of LMDeploy that are not its public interface, so all of them hold for one version only
(`KNOWN`), and a test compares what they replace with that version's source. docs/benchmarks.md has what each brings.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

LOG = logging.getLogger("lensmith.levers")
KNOWN = "0.18.0"
OFF = "LENSMITH_LMDEPLOY_LEVERS_OFF"  # names of levers between commas, or "all"


class Lever(NamedTuple):
    """A module of this folder whose `pull()` puts it in place.

    LMDeploy's server process and its engine process need different ones: `server` and `engine` say which.
    """

    name: str
    server: bool
    engine: bool


LEVERS = (
    Lever("pushed_tokens", server=True, engine=True),
    Lever("event_polling", server=False, engine=True),
    Lever("pixel_bytes", server=True, engine=False),
    Lever("vision_inputs", server=False, engine=True),
    Lever("vision_graphs", server=False, engine=True),
    Lever("prefill_graphs", server=False, engine=True),
)


def wanted(off: str, version: str) -> Sequence[Lever]:
    """The levers for this version of LMDeploy, less those named in `off`; another version gets none."""
    names = {name.strip() for name in off.split(",")}
    if "vision_inputs" in names:  # the model's side of pixel_bytes
        names.add("pixel_bytes")
    if version != KNOWN or "all" in names:
        return ()
    return tuple(lever for lever in LEVERS if lever.name not in names)


def pull(engine_process: bool) -> None:
    """Put the levers of this process in place. One that cannot be is left out, and the log says why."""
    try:
        version = importlib.metadata.version("lmdeploy")
    except importlib.metadata.PackageNotFoundError:
        return
    for lever in wanted(os.environ.get(OFF, ""), version):
        if not (lever.engine if engine_process else lever.server):
            continue
        try:
            importlib.import_module(f"{__name__}.{lever.name}").pull()
        except Exception as error:  # whatever it is, LMDeploy works without it
            LOG.warning("LMDeploy runs without %s: %s: %s", lever.name, type(error).__name__, error)
