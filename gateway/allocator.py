"""How the process handles memory, set once at its start: large request bodies come and go all the time."""

from __future__ import annotations

import ctypes
import gc

# Of <malloc.h>. Left to itself glibc hands the pages of every body back to the kernel and faults them in again for the
# next one: a quarter of the CPU time of a request with a 100 KB image, 16 at a time.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT_BYTES = 64 * 1024 * 1024
STEP_BYTES = 1024 * 1024
# Larger than this is mapped for itself and given back at once.
LARGE_BYTES = 4 * 1024 * 1024


def tune() -> None:
    """Keep freed memory for the next request, and let the collector pass over what lives as long as the process."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        for parameter, value in (
            (M_TRIM_THRESHOLD, KEPT_BYTES),
            (M_TOP_PAD, STEP_BYTES),
            (M_MMAP_THRESHOLD, LARGE_BYTES),
        ):
            mallopt(parameter, value)
    gc.collect()
    gc.freeze()
