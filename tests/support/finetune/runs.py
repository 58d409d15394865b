"""Training runs in processes of their own, to be stopped and gone on with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from finetune.reporting.runlog import read_log
from tests.support.paths import ROOT
from tests.support.signals import heed_signals
from tests.support.unmeasured import unmeasured

QLORA = {"quantization_bit": 4, "lora_dropout": 0.1}
SCRIPT = "import sys; from finetune.cli import train; train(sys.argv[1:], prog_name='lensmith train')"


def start(recipe: Recipe, path: Path, measured: bool = False) -> subprocess.Popen[str]:
    """A training process. measured: whether `make cov` counts its lines; most run in the tests' own, too."""
    save_recipe(recipe, path)
    search = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = (dict(os.environ) if measured else unmeasured()) | {"PYTHONPATH": os.pathsep.join(search)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)], preexec_fn=heed_signals, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while not any(record["current_steps"] >= step for record in read_log(out / "trainer_log.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def adapter(folder: str | Path) -> bytes:
    return (Path(folder) / "adapter_model.safetensors").read_bytes()
