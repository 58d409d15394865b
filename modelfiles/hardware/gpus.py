"""GPUs by name: how much memory CUDA shows of each, and what it computes in. One table for planning and training."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class GpuModel:
    """A kind of GPU.

    total_gib: GiB of memory as `torch.cuda.get_device_properties(0).total_memory` gives it, with ECC on where that is
    the default. The CUDA context of a process is part of it and is not available to tensors.
    capability: CUDA's compute capability, (7, 5) for Turing.
    measured: True if total_gib was read on such a card. The other values are the ones that public logs of PyTorch show.
    """

    name: str
    total_gib: float
    capability: tuple[int, int]
    measured: bool = False


GPU_MODELS = {
    "t4": GpuModel("T4", 14.56, (7, 5)),
    "l4": GpuModel("L4", 22.05, (8, 9)),
    "a10": GpuModel("A10", 21.98, (8, 6)),
    "a100-40": GpuModel("A100 40 GB", 39.38, (8, 0)),
    "a100": GpuModel("A100 80 GB", 79.14, (8, 0)),
    "h100": GpuModel("H100 80 GB", 79.11, (9, 0), measured=True),
    "h200": GpuModel("H200", 139.72, (9, 0), measured=True),
}
# Compute capability assumed of a card of which only the memory is known: the first one with bfloat16.
UNKNOWN_CAPABILITY = (8, 0)
