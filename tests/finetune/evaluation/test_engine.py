"""`eval --engine`: an engine is started, answers as this machine does, and ends; here the one that needs no GPU."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from finetune.cli import evaluate as command
from finetune.errors import FinetuneError
from finetune.evaluation import endpoint, engine
from finetune.evaluation.evaluate import EvalResult, evaluate
from finetune.export.merge import merge
from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from modelfiles.hardware import server_child
from tests.support.finetune.adapters import random_adapter

MakeRecipe = Callable[..., Recipe]
ENGINE = ("transformers", merge)


def predictions(folder: Path) -> list[str]:
    lines = (folder / "generated_predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["predict"] for line in lines]


def test_an_engine_answers_for_an_adapter_as_this_machine_does(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Merged, which rounds the weights, so it is here, too; with the recipe's image sizes; nothing of it is left."""
    adapter = random_adapter(recipe(), tmp_path / "adapter", size=0.2)
    keys: dict[str, Any] = {"adapter_name_or_path": str(adapter), "image_min_pixels": 16384, "max_samples": 12}
    here, there = tmp_path / "here", tmp_path / "there"
    merged = merge(recipe(**keys, export_dir=str(tmp_path / "merged"), eval_dataset=None), Console(quiet=True))
    evaluate(recipe(model_name_or_path=str(merged), max_samples=12, output_dir=str(here)))
    made = recipe(**keys, output_dir=str(there))
    save_recipe(made, tmp_path / "recipe.yaml")
    result = CliRunner().invoke(command, [str(tmp_path / "recipe.yaml"), "--engine", "transformers"])
    assert result.exit_code == 0, result.output
    assert predictions(there) == predictions(here)
    assert not list(there.glob(".merged*"))
    evaluate(recipe(**keys | {"adapter_name_or_path": None, "image_min_pixels": None}, output_dir=str(tmp_path / "b")))
    assert predictions(tmp_path / "b") != predictions(here), "the adapter changes answers"


def test_an_engine_that_dies_is_an_error_and_the_same_command_goes_on(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids, real = [], server_child.ServerChild.wait_until_ready

    def ready(child: server_child.ServerChild, health: str) -> None:
        real(child, health)
        pids.append(child.process.pid)

    asked: list[int] = []
    ask = endpoint.Endpoint._ask

    async def count(self: endpoint.Endpoint, client: Any, row: Any) -> str:
        asked.append(1)
        if len(asked) == 6:
            os.kill(pids[0], signal.SIGKILL)
        return await ask(self, client, row)

    monkeypatch.setattr(server_child.ServerChild, "wait_until_ready", ready)
    monkeypatch.setattr(endpoint.Endpoint, "_ask", count)

    def run() -> EvalResult:
        return evaluate(recipe(per_device_eval_batch_size=1), Console(quiet=True), engine=ENGINE)

    with pytest.raises(FinetuneError, match=r"The transformers engine has ended: .* same command goes on"):
        run()
    partial = (tmp_path / "out/.generated_predictions.jsonl.partial").read_text().splitlines()
    assert len(partial) == 1 + 5
    assert run().n == 24
    assert len(asked) == 6 + 19
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_an_engine_cannot_honour_is_refused_before_it_starts(recipe: MakeRecipe) -> None:
    for keys, sentence in (
        ({"quantization_bit": 4}, "serves the base in 16 bits, .* add quantization_bit=null"),
        ({"image_sizes": "ollama"}, "image_sizes is for this machine's answers"),
        ({"box_format": "original"}, "box_format: .* evaluate without --engine"),
        ({"image_max_pixels": 4096}, "image_max_pixels: an engine sizes images by the model's own limits"),
    ):
        with pytest.raises(FinetuneError, match=sentence):
            evaluate(recipe(**keys), Console(quiet=True), engine=ENGINE)


def test_an_engine_that_is_not_there_or_does_not_start_is_one_sentence(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FinetuneError, match=r"lmdeploy is not installed; pip install 'lensmith\[lmdeploy\]'"):
        evaluate(recipe(), Console(quiet=True), engine=("lmdeploy", merge))
    monkeypatch.undo()
    monkeypatch.setattr(engine, "MAX_PIXELS", 0)
    with pytest.raises(FinetuneError, match=r"The transformers engine did not start: .*--max-image-pixels"):
        evaluate(recipe(), Console(quiet=True), engine=ENGINE)
