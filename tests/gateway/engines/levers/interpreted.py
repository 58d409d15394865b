"""A small Qwen3-VL in LMDeploy's code on the CPU, as LMDeploy runs it and by our budgets: prints how results differ.

Run by test_graphs.py in a process of its own, because Triton's interpreter has to be chosen before LMDeploy is
imported: attention and the cache's kernels are LMDeploy's, interpreted. What works on rows, one by one, is LMDeploy's
code for devices without Triton, on both sides. Instead of CUDA graphs, the computations themselves are called.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import lmdeploy.pytorch.kernels.cuda  # noqa: F401 # loads the modules that are changed below
import torch
import triton.language as tl
from lmdeploy.pytorch.backends.default.activation import DefaultSiluAndMulImpl
from lmdeploy.pytorch.backends.default.apply_rotary_emb import DefaultApplyRotaryEmbImpl
from lmdeploy.pytorch.backends.default.norm import DefaultRMSNormImpl

from tests.support.small_lmdeploy import CASES, compare, small_model


def interpret_kernels() -> None:
    """What the interpreter lacks: functions of `tl` that were taken before it replaced them, and a GPU's figures."""
    kernel = sys.modules["lmdeploy.pytorch.kernels.cuda.flashattention"]
    kernel.tl_log2 = lambda x: math.log2(x) if isinstance(x, float) else tl.log2(x)  # type: ignore[attr-defined]
    kernel.tl_exp2 = lambda x: tl.exp2(x)  # type: ignore[attr-defined]
    kernel.get_device_props = lambda *_: {"compute_capability": (9, 0)}  # type: ignore[attr-defined]


def without_triton(model: Any) -> Any:
    rows = {"RMSNorm": DefaultRMSNormImpl, "SiluAndMul": lambda *_: DefaultSiluAndMulImpl(inplace=True)}
    for module in model.modules():
        name = type(module).__name__
        if name == "ApplyRotaryEmb":
            module.impl = DefaultApplyRotaryEmbImpl()
        elif name in rows:
            module.impl = rows[name](None, getattr(module, "eps", None))
    return model


def main(folder: Path) -> None:
    interpret_kernels()
    model = without_triton(small_model(folder, torch.device("cpu"), torch.float32))
    print(json.dumps({name: compare(model, lambda call: call, **case) for name, case in CASES.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
