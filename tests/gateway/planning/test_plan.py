"""`lensmith plan serve`: what fits on a card, and how the engine is to be started there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.planning.advice import MEASURED as MEASURED_ENGINES
from gateway.planning.gpu import CARDS, Gpu, parse_gpu
from gateway.planning.lmdeploy_memory import (
    PICTURE_GRAPHS,
    ModelMemory,
    NoRoom,
    kv_cache,
    model_memory,
    runtime_reserve,
)
from gateway.planning.plan import make_engine_plan
from gateway.planning.types import Workload
from lensmith import main
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.hardware.gpus import GIB
from tests.support.gateway.model_shapes import make_qwen3_vl
from tests.support.paths import ROOT

MEASURED = json.loads((ROOT / "benchmarks" / "results" / "lmdeploy_kv.json").read_text())["settings"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {size: make_qwen3_vl(base / size, size) for size in ("2B", "8B")}


def plan(model: Path, *options: object) -> Result:
    return CliRunner().invoke(main, ["plan", "serve", str(model), *map(str, options)])


def planned(model: Path, *options: object) -> dict[str, Any]:
    result = plan(model, "--json", *options)
    assert result.exit_code in (0, 1), result.output
    value: dict[str, Any] = json.loads(result.output)
    value["flags"] = {choice["option"]: choice["value"] for choice in value["choices"]}
    return value


def test_weights_are_the_checkpoints_size(models: dict[str, Path]) -> None:
    # 2,127,532,032 and 8,767,123,696 parameters: Qwen3-VL-2B-Instruct's and Qwen3-VL-8B-Instruct's.
    assert model_memory(ModelFolder.open(models["2B"])).weights == 2 * 2_127_532_032
    assert model_memory(ModelFolder.open(models["8B"])).weights == 2 * 8_767_123_696


def test_a_tied_head_in_the_file_is_not_loaded_twice(tmp_path: Path) -> None:
    untied = make_qwen3_vl(tmp_path / "untied", "8B")
    tied = make_qwen3_vl(tmp_path / "tied", "8B", tie_word_embeddings=True)
    sizes = [model_memory(ModelFolder.open(path)).weights for path in (untied, tied)]
    assert sizes[0] - sizes[1] == 151936 * 4096 * 2


def test_a_t4_gets_float16_eager_mode_and_a_tuned_cache(models: dict[str, Path]) -> None:
    made = planned(models["2B"], "--gpu", "t4", "--images", 8, "--image-size", "1296x968", "--concurrency", 4)
    flags = made["flags"]
    assert flags["backend"] == "pytorch"
    assert flags["dtype"] == "float16"
    assert flags["eager-mode"] is True
    assert flags["enable-prefix-caching"] is False
    assert flags["max-batch-size"] == 4
    assert 0.6 < flags["cache-max-entry-count"] < 1
    assert made["image_tokens"] == 1200  # 40 x 30 of 32 x 32 pixels
    assert made["sessions"] >= 4
    assert made["problems"] == []
    assert made["arguments"][:6] == ["--backend", "pytorch", "--dtype", "float16", "--tp", "1"]
    assert "--eager-mode" in made["arguments"]


def test_a_newer_card_gets_bfloat16_and_cuda_graphs(models: dict[str, Path]) -> None:
    made = planned(models["2B"], "--gpu", "h200")
    assert made["flags"]["dtype"] == "bfloat16"
    assert made["flags"]["eager-mode"] is False
    assert "--eager-mode" not in made["arguments"]
    assert made["flags"]["max-prefill-token-num"] == 8192


def test_room_is_left_for_the_graphs_of_pictures_where_they_are_captured(models: dict[str, Path]) -> None:
    folder, gpu = ModelFolder.open(models["2B"]), parse_gpu("h200")

    def graphs(tp: int) -> int:
        with_graphs, without = (
            make_engine_plan(folder, gpu, Workload(concurrency=8), tp, {"eager-mode": eager})
            for eager in ("false", "true")
        )
        return with_graphs.activations - without.activations

    assert graphs(1) - graphs(2) == PICTURE_GRAPHS


@pytest.mark.parametrize("measured", MEASURED, ids=lambda measured: measured["setting"])
def test_planned_tokens_are_those_lmdeploy_allocated(models: dict[str, Path], measured: dict[str, Any]) -> None:
    """On one H200, whole and as a T4 and an L4 in memory: benchmarks/lmdeploy_kv.py."""
    model = models.get(measured["model"], ROOT / "examples" / measured["model"])
    gpu = Gpu(measured["card"], measured["memory"], measured["free"], tuple(measured["capability"]))
    flags = {name: str(value).lower() for name, value in measured["flags"].items()}
    made = make_engine_plan(ModelFolder.open(model), gpu, Workload(), 1, flags)
    assert made.cache is not None
    assert made.cache.tokens == pytest.approx(measured["engine_tokens"], rel=0.02)
    if "free_when_ready" in measured:
        used = measured["free_at_sizing"] - made.cache.tokens * made.token_bytes - measured["free_after_answers"]
        assert used < made.activations, "steps took more memory than planned"


def test_the_published_t4_recipe_in_lmdeploys_own_arithmetic(models: dict[str, Path]) -> None:
    """0.6 of what 8192 prefill tokens' logits leave: 4.66 GiB of blocks of 7 MiB."""
    recipe = ("--engine-arg", "cache-max-entry-count=0.6", "--engine-arg", "max_prefill_token_num=8192")
    made = planned(models["2B"], "--gpu", "t4", "--concurrency", 4, *recipe)
    reserve = (8192 + 2 * 4) * 151936 * 2
    assert made["reserve"] == reserve
    block = 28 * 2 * 64 * 8 * 128 * 2
    assert made["cache"]["blocks"] == int((made["free"] - reserve) * 0.6) // block
    assert made["cache"]["tokens"] == 64 * made["cache"]["blocks"]


def test_the_rest_of_the_memory_is_kept_for_the_steps(models: dict[str, Path]) -> None:
    for size, card in (("2B", "t4"), ("2B", "l4"), ("8B", "l4"), ("8B", "a100")):
        made = planned(models[size], "--gpu", card)
        assert made["free"] - made["cache"]["tokens"] * made["token_bytes"] >= made["activations"]


def test_a_model_that_is_too_large_names_a_card_and_a_number_of_them(models: dict[str, Path]) -> None:
    result = plan(models["8B"], "--gpu", "t4")
    assert result.exit_code == 1
    assert "weights 16.33 GiB" in result.output
    assert "such as the A100 40 GB or share it over 2 of these cards with --tp 2." in result.output
    assert planned(models["8B"], "--gpu", "t4", "--tp", 2)["problems"] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--concurrency", 64, "--images", 8), "--concurrency 7,"),
        (("--session-len", 4096, "--images", 8), "--session-len 10240, fewer images"),
        (("--session-len", 200_000), "at most --session-len"),
        (("--engine-arg", "cache-max-entry-count=0.99"), "a smaller cache-max-entry-count"),
    ],
)
def test_what_does_not_fit_says_what_to_change(models: dict[str, Path], options: tuple[object, ...], told: str) -> None:
    result = plan(models["2B"], "--gpu", "t4", *options)
    assert result.exit_code == 1
    assert told in result.output


def test_an_image_larger_than_the_prefill_budget_raises_it(models: dict[str, Path]) -> None:
    assert planned(models["2B"], "--gpu", "t4")["image_pixels"] == 2048 * 32 * 32
    made = planned(models["2B"], "--gpu", "t4", "--image-size", "4000x3000")
    assert made["image_tokens"] > 8192
    assert made["flags"]["max-prefill-token-num"] == 16384
    assert made["image_pixels"] >= made["image_tokens"] * 32 * 32


def test_flags_given_by_hand_replace_or_join_the_plans(models: dict[str, Path]) -> None:
    given = ("eager-mode=false", "max-batch-size=3", "log-level=INFO", "quant-policy=8")
    made = planned(models["2B"], "--gpu", "t4", *(word for flag in given for word in ("--engine-arg", flag)))
    assert made["flags"]["eager-mode"] is False
    assert made["flags"]["max-batch-size"] == "3"
    assert made["arguments"][-4:] == ["--log-level", "INFO", "--quant-policy", "8"]
    assert "does not reckon with it" in made["choices"][-1]["reason"]


@pytest.mark.parametrize(
    "options",
    [
        ("--gpu", "gtx"),
        ("--gpu", "0"),
        ("--gpu", "t4", "--engine-arg", "tp=three"),
        ("--gpu", "t4", "--engine-arg", "max-batch-size=0"),
        ("--gpu", "t4", "--engine-arg", "eager-mode=perhaps"),
        ("--gpu", "t4", "--engine-arg", "cache-max-entry-count=1"),
        ("--gpu", "t4", "--engine-arg", "nonsense"),
        ("--gpu", "t4", "--tp", "3"),
    ],
)
def test_impossible_wishes_are_refused_in_one_sentence(models: dict[str, Path], options: tuple[str, ...]) -> None:
    result = plan(models["2B"], *options)
    assert result.exit_code in (1, 2)
    assert result.output.strip().splitlines()[-1].startswith("Error: ")
    assert isinstance(result.exception, SystemExit)


def test_a_card_is_a_name_or_its_memory() -> None:
    assert parse_gpu("T4") is CARDS["t4"]
    assert parse_gpu("22.5").free == int(22.5 * GIB)
    assert parse_gpu("24GiB").bf16


def test_lmdeploy_halves_the_prefill_budget_when_few_blocks_are_left() -> None:
    model = ModelMemory(weights=0, block=7 * 2**20, state_slot=0, vocabulary=151936)
    free = runtime_reserve(8192, 1, model.vocabulary) + 20 * model.block
    assert kv_cache(model, free, 0.8, 8192, 1).prefill_tokens == 8192
    free = runtime_reserve(8192, 1, model.vocabulary) + 15 * model.block
    halved = kv_cache(model, free, 0.8, 8192, 1)
    assert halved.prefill_tokens == 4096
    assert halved.blocks == int((free - runtime_reserve(4096, 1, model.vocabulary)) * 0.8) // model.block
    with pytest.raises(NoRoom):
        kv_cache(model, runtime_reserve(8192, 1, model.vocabulary), 0.8, 8192, 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from(["2B", "8B"]),
    gib=st.floats(3, 200),
    turing=st.booleans(),
    images=st.integers(0, 16),
    side=st.integers(28, 6000),
    concurrency=st.none() | st.integers(1, 300),
    tp=st.sampled_from([1, 2, 4, 8]),
)
def test_a_plan_without_problems_fits(
    models: dict[str, Path],
    size: str,
    gib: float,
    turing: bool,
    images: int,
    side: int,
    concurrency: int | None,
    tp: int,
) -> None:
    card = Gpu("card", int(gib * GIB), int(gib * GIB), (7, 5) if turing else (9, 0))
    made = make_engine_plan(ModelFolder.open(models[size]), card, Workload(images, (side, side), concurrency), tp)
    if made.cache is None:
        assert made.problems
        return
    flags = {choice.option: choice.value for choice in made.choices}
    assert 0 < float(flags["cache-max-entry-count"]) < 1
    assert flags["eager-mode"] is turing
    assert 0 < int(flags["session-len"]) <= max(made.cache.longest_session, 0)
    if not made.problems:
        left = made.free - made.cache.tokens * made.token_bytes
        assert left >= made.activations
        assert int(flags["max-batch-size"]) * made.request_tokens <= made.cache.tokens
        assert made.image_tokens <= int(flags["max-prefill-token-num"]) == made.cache.prefill_tokens
        assert made.request_tokens <= int(flags["session-len"])


@pytest.mark.parametrize(
    ("options", "engine", "because"),
    [
        (("--gpu", "h100", "--image-size", "224x224", "--concurrency", 64), "lmdeploy", "1.4 times as fast"),
        (("--gpu", "h200", "--image-size", "4000x3000", "--concurrency", 48), "lmdeploy", "4.8 times as fast"),
        (("--gpu", "h200", "--image-size", "800x600", "--concurrency", 4), "lmdeploy", "1.5 times as fast"),
        (("--gpu", "h200", "--image-size", "768x768", "--concurrency", 64), "lmdeploy", "1.6 times as fast"),
        (("--gpu", "t4", "--image-size", "224x224", "--concurrency", 64), "lmdeploy", "there is no bfloat16"),
    ],
)
def test_the_engine_for_a_card_and_a_load_is_named_with_its_reason(
    models: dict[str, Path], options: tuple[object, ...], engine: str, because: str
) -> None:
    advice = planned(models["2B"], *options)["advice"]
    assert advice["engine"] == engine
    assert because in advice["reason"]
    assert advice["source"]
    assert f"Engine for this card and load: {engine}, because " in plan(models["2B"], *options).output


def test_the_figures_behind_the_advice_are_those_of_the_documentation() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for row in MEASURED_ENGINES:
        assert f"| {row.size}, {row.at_once} at once | {row.vllm:g} | {row.lmdeploy:g} |" in page
