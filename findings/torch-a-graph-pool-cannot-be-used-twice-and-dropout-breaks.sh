#!/usr/bin/env bash
# Expected: torch.cuda.graph_pool_handle() names a pool of memory for CUDA graphs. The graphs of one run are dropped,
# the next run captures its own into the same pool. A capture that cannot be begun raises, and the program goes on
# without graphs.
#
# What happens: once all graphs of a pool are gone, the next capture into it raises an internal assertion of the
# allocator ("use_count > 0 ... please report a bug to PyTorch"), if anything that was made during a capture still
# lives. After a matrix product something always does, though no tensor of the program is left: cuBLAS's workspace for
# the capturing stream. With additions alone the same code works. And the program cannot go on: from then on every
# dropout and every other random number on the GPU raises "Offset increment outside graph capture encountered
# unexpectedly", outside of any graph, and in code that has none.
#
# Versions: torch 2.11.0+cu130.
#
# Why it matters: decoding and training steps are captured again and again in one process: the answers of an evaluation,
# then the next epoch, the next trial of a batch size, the next test. A first run works, and a second one dies in a
# dropout that has nothing to do with it; falling back to steps without graphs does not help. Keep one graph of the
# pool alive, or take a new handle when there is none.
#
# Source: torch 2.11, c10/cuda/CUDACachingAllocator.cpp (create_or_incref_pool), aten/src/ATen/cuda/CUDAGraph.cpp
# (capture_begin marks the generators as capturing before it asks for the pool, and nothing marks them back).
#
# Output seen on an H200:
#   additions:       a capture after all graphs are gone: works
#   matrix products: a capture while another graph lives: works
#   matrix products: a capture after all graphs are gone: it->second->use_count > 0 INTERNAL ASSERT FAILED
#   dropout, no graph: Offset increment outside graph capture encountered unexpectedly.
set -euo pipefail
nvidia-smi -L >/dev/null 2>&1 || { echo "This needs an NVIDIA GPU." >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.11.0 numpy==2.3.5
cd "$work"
"$work/venv/bin/python" - <<'PY'
import gc
import sys

import torch

x = torch.randn(64, 64, device="cuda")
out = torch.empty_like(x)


def add():
    torch.add(x, x, out=out)


def multiply():
    torch.matmul(x, x, out=out)


def captured(work, pool):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        work()
    graph.replay()
    return graph


def after_all_are_gone(work):
    """What becomes of a third capture: whether a second works beside the first, and the error of the third."""
    work()  # libraries prepare themselves outside of a capture
    pool = torch.cuda.graph_pool_handle()
    graphs = [captured(work, pool), captured(work, pool)]
    graphs.clear()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    try:
        captured(work, pool)
    except RuntimeError as error:
        return str(error).partition(" at ")[0]
    return "works"


additions, products = after_all_are_gone(add), after_all_are_gone(multiply)
try:
    torch.nn.functional.dropout(x, 0.1)
    dropout = "works"
except RuntimeError as error:
    dropout = str(error).splitlines()[0]
if additions != "works" or "use_count > 0 INTERNAL ASSERT FAILED" not in products or "Offset increment" not in dropout:
    sys.exit(f"The behaviour has changed: {additions!r}, {products!r}, {dropout!r}.")
print("additions:       a capture after all graphs are gone:", additions)
print("matrix products: a capture while another graph lives: works")
print("matrix products: a capture after all graphs are gone:", products)
print("dropout, no graph:", dropout)
PY
