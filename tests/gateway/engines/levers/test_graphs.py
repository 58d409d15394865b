"""The vision tower and the prefill by budgets, against LMDeploy's own code, and what happens where graphs cannot be."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmdeploy")
pytest.importorskip("triton")

import torch
from lmdeploy.messages import QuantPolicy
from lmdeploy.pytorch.models import qwen3_vl

from benchmarks.models import write_model
from gateway.engines.startup.levers import attention_tiles, captured_calls, prefill_graphs

# Budgets of patches and of tokens that each of two calls ran by; the tower is called alone first.
REPLAYED = {
    "one picture": [64, 64, 32],
    "pictures of several sizes, one longer than a tile": [256, 256, 128],
    "a prompt longer than a tile, after a shorter one": [64, 64, 320],
    "a prompt of which a part is in the cache": [64, 64],
    "more patches than the largest budget": [320],
    "more tokens than the largest budget": [64, 64],
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models") / "vl"
    write_model(folder, "tiny", 512 * 512)
    root = Path(__file__).resolve().parents[4]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-m", "tests.gateway.engines.levers.interpreted", str(folder)]
    done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", REPLAYED)
def test_features_hidden_states_and_cache_are_lmdeploy_s(compared: dict[str, Any], case: str) -> None:
    assert compared[case]["largest"] > 1
    assert compared[case]["difference"] < 1e-5  # of float32 numbers up to 10


def test_features_of_as_many_patches_as_a_budget_are_lmdeploy_s_bit_for_bit(compared: dict[str, Any]) -> None:
    assert compared["one picture"]["features"] == 0


@pytest.mark.parametrize(("case", "budgets"), REPLAYED.items())
def test_the_smallest_budget_is_taken_and_lmdeploy_s_code_beyond_the_largest(
    compared: dict[str, Any], case: str, budgets: list[int]
) -> None:
    assert compared[case]["replayed"] == budgets * 2


def test_tiles_are_the_rows_of_every_sequence_and_nothing_else() -> None:
    chance = random.Random(0)
    for _ in range(100):
        lengths = [chance.choice([0, 1, 127, 128, 129, 300]) for _ in range(chance.randint(1, 6))]
        expected, start = [], 0
        for sequence, length in enumerate(lengths):
            for offset in range(0, length, attention_tiles.TILE):
                rows = min(attention_tiles.TILE, length - offset)
                expected.append((sequence, start + offset, rows, start, length, offset + rows))
            start += length
        tiles = attention_tiles.cut(torch.tensor(lengths, dtype=torch.int32), len(expected) + 2)
        assert all(part.dtype == torch.int32 for part in tiles)
        assert list(zip(*(part.tolist() for part in tiles), strict=True))[: len(expected)] == expected
        assert not any(tiles.rows[len(expected) :])


def test_whatever_fits_a_budget_has_room_for_its_tiles() -> None:
    chance = random.Random(0)
    for _ in range(300):
        lengths = [chance.choice([4, 16, 100, 196, 500]) for _ in range(chance.randint(1, 9))]
        needed = sum(-(-length // attention_tiles.TILE) for length in lengths)
        for budget in (256, 1024):
            if attention_tiles.fits(budget, sum(lengths), len(lengths)):
                assert sum(lengths) <= budget
                assert needed <= budget // attention_tiles.ROWS_OF_SLOT


def test_budgets_are_captured_from_the_largest_on() -> None:
    order: list[int] = []

    def capture(call: Callable[[], None]) -> Callable[[], None]:
        call()
        return call

    calls = captured_calls.CapturedCalls(order.append, [256, 1024, 512])
    calls.capture(capture)
    assert order == [1024, 512, 256]
    calls.run(512)
    assert order[-1] == 512


def test_budgets_that_take_too_much_memory_are_left_out() -> None:
    assert captured_calls.within([128, 256, 512], bytes_a_row=100, limit=30_000) == [128, 256]


def agent_with(model: Any, **changed: Any) -> Any:
    """As much of LMDeploy's model agent as its warm-up's end needs."""
    values = {
        "patched_model": SimpleNamespace(get_model=lambda: model),
        "backend_config": SimpleNamespace(eager_mode=False),
        "dist_config": SimpleNamespace(world_size=1),
        "cache_config": SimpleNamespace(quant_policy=QuantPolicy.NONE),
        "adapters": None,
        "stream": None,
        "all_context": nullcontext,
    }
    return SimpleNamespace(**values | changed)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = qwen3_vl.Qwen3VLForConditionalGeneration.__new__(qwen3_vl.Qwen3VLForConditionalGeneration)
    torch.nn.Module.__init__(made)
    made.config = SimpleNamespace(model_type="qwen3_vl")
    made.visual = torch.nn.Module()
    made.visual.deepstack_merger_list = torch.nn.ModuleList()
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return made


def warmed_up(agent: Any, capture: Callable[[Any, Any], None]) -> list[str]:
    happened: list[str] = []

    def captured(owner: Any, model: Any) -> None:
        happened.append("captured")
        capture(owner, model)

    captured_calls.after_warmup(lambda _: happened.append("LMDeploy's warm-up"), captured, "vision tower")(agent)
    return happened


def test_graphs_are_captured_after_lmdeploy_s_own_warm_up(model: Any) -> None:
    assert warmed_up(agent_with(model), lambda *_: None) == ["LMDeploy's warm-up", "captured"]


@pytest.mark.parametrize(
    "changed",
    [
        {"backend_config": SimpleNamespace(eager_mode=True)},
        {"dist_config": SimpleNamespace(world_size=2)},
        {"adapters": {"name": "folder"}},
    ],
)
def test_no_graphs_in_eager_mode_on_several_gpus_or_with_adapters(model: Any, changed: dict[str, Any]) -> None:
    assert warmed_up(agent_with(model, **changed), lambda *_: None) == ["LMDeploy's warm-up"]


def test_a_relative_of_the_model_has_no_graphs(model: Any) -> None:
    model.config.model_type = "qwen3_vl_moe"
    assert warmed_up(agent_with(model), lambda *_: None) == ["LMDeploy's warm-up"]


@contextmanager
def log_of_lmdeploy() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    captured_calls.LOG.addHandler(handler)
    try:
        yield lines
    finally:
        captured_calls.LOG.removeHandler(handler)


def test_where_a_capture_fails_lmdeploy_s_code_runs_and_the_log_says_so(model: Any) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with log_of_lmdeploy() as lines:
        warmed_up(agent_with(model), fails)
    assert lines == ["LMDeploy runs without CUDA graphs of the vision tower: RuntimeError: out of memory"]
    assert "forward" not in vars(model)


def test_a_quantised_cache_has_no_graphs_of_the_prefill(model: Any) -> None:
    model.language_model = SimpleNamespace(layers=[])
    quantised = agent_with(model, cache_config=SimpleNamespace(quant_policy=QuantPolicy.INT8))
    with log_of_lmdeploy() as lines:
        warmed_up(quantised, prefill_graphs.capture_prefill)
    assert len(lines) == 1
    assert "a cache of 16 bit" in lines[0]
