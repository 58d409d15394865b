"""`lensmith demo`, as a visitor runs it: the real thing once, and what it says when it cannot run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.unmeasured import unmeasured

LENSMITH = [sys.executable, "-m", "lensmith"]


def run(*arguments: str, cwd: Path = ROOT, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Unmeasured: each room's own tests reach the lines that the demo runs through."""
    return subprocess.run(
        [*LENSMITH, *arguments], cwd=cwd, env=unmeasured(), capture_output=True, text=True, timeout=timeout
    )


def answers(folder: Path) -> list[str]:
    lines = (folder / "generated_predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["predict"] for line in lines]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state != "Z"


@pytest.mark.timeout(900)
def test_the_whole_line_teaches_the_base_model_and_serves_it(tmp_path: Path) -> None:
    out, summary_file = tmp_path / "demo", tmp_path / "summary.json"
    done = run("demo", "--keep", "--out", str(out), "--json", str(summary_file), timeout=870)
    assert done.returncode == 0, done.stdout + done.stderr
    pid = int(re.search(r"kill (\d+)", done.stdout)[1])
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    try:
        summary = json.loads(summary_file.read_text())
        assert set(summary) == {"before", "after", "seconds"}
        assert summary["before"]["n"] >= 1000
        assert summary["after"]["n"] == summary["before"]["n"]
        assert summary["before"]["exact_match"] <= 0.45
        assert summary["after"]["exact_match"] >= 0.95
        assert summary["seconds"]["total"] >= sum(v for k, v in summary["seconds"].items() if k != "total") - 1
        assert (out / "adapter" / "training_loss.png").read_bytes().startswith(b"\x89PNG")
        assert list((out / "adapter" / "runs").rglob("events.out.tfevents.*"))

        recipe, again = str(ROOT / "examples" / "recipes" / "easy_vqa_eval.yaml"), out / "merged_eval"
        changes = [f"model_name_or_path={out / 'merged'}", f"dataset_dir={out / 'data'}", f"output_dir={again}"]
        assert run("eval", recipe, *changes, "max_samples=200", timeout=300).returncode == 0
        assert answers(again) == answers(out / "after")[:200]  # merged, and the adapter beside its base
        # Ollama gives each image at least 1024 tokens, where this model was trained with 4: docs/modelfiles.md.
        changes[-1] = f"output_dir={out / 'as_ollama'}"
        assert run("eval", recipe, *changes, "max_samples=40", "image_sizes=ollama", timeout=300).returncode == 0
        assert json.loads((out / "as_ollama/predict_results.json").read_text())["exact_match"] < 0.1

        row = json.loads((out / "data" / "easy_vqa_test.json").read_text())[0]
        label = row["conversations"][1]["value"]
        assert re.search(rf"^plain +{label}$", done.stdout, re.M)
        assert re.search(rf"^streamed +{label} ", done.stdout, re.M)
        curl = next(line for line in done.stdout.splitlines() if line.startswith("curl "))
        pasted = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60)
        assert json.loads(pasted.stdout)["choices"][0]["message"]["content"] == label
        assert "lensmith_requests_total" in done.stdout
        assert re.search(r"^FROM ", done.stdout, re.M)
    finally:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while any(map(alive, [pid, *children])) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children
    assert not any(map(alive, [pid, *children]))


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run("demo", "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"Error: {tmp_path} is not a demo's work folder; choose another one with --out.\n"
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_help_imports_none_of_the_heavy_packages() -> None:
    script = "import sys, lensmith; lensmith.main(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "From labelled images to an answering API" in done.stdout
    for heavy in ("torch", "transformers", "fastapi", "aiohttp", "pydantic"):
        assert f"'{heavy}'" not in done.stdout


def test_a_missing_package_is_one_sentence_that_names_the_extra() -> None:
    script = "import sys; sys.modules['torch'] = None; import lensmith; lensmith.main()"
    arguments = ["train", "examples/recipes/easy_vqa_train.yaml"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "Error: `lensmith train` needs the package torch: pip install 'lensmith[finetune]'\n"


WITHOUT_STUDIO = """
import sys

class Gone:
    def find_spec(self, name, *arguments):
        if name == "studio":
            raise ModuleNotFoundError("No module named 'studio'", name=name)

sys.meta_path.insert(0, Gone())
import lensmith
lensmith.main()
"""


def test_an_installation_without_the_studio_says_so() -> None:
    """The images of deploy/docker are such."""
    command = [sys.executable, "-c", WITHOUT_STUDIO, "studio"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "Error: The studio is not in this installation: pip install 'lensmith[studio]' brings it.\n"
