"""An evaluation: a dataset version's split, answered by the base and by runs, in a folder of its own."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe
from gateway.engines.spec import LAUNCHED
from modelfiles.folder.atomic_write import write_atomically
from modelfiles.hardware.python_child import module_command
from studio.errors import StudioError
from studio.jobs.job import Job
from studio.jobs.spec import CPU, JobSpec
from studio.jobs.store import Jobs
from studio.workspace.folder import Workspace
from studio.workspace.versions import Version

KIND = "evaluate"
PLAN = "evaluation.json"
BASE = "base"  # the side that answers without an adapter
RUN = "run-"  # how the folders of the other sides begin
ADAPTERS = ("adapter_model.safetensors", "trained_weights.safetensors")
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Evaluation:
    """What is compared.

    split: "train" or "validation"; runs: names of the workspace's runs, whose common base is the side "base"; engine:
    what answers, as `lensmith eval --engine` has it, or "" for the model itself.
    """

    name: str
    dataset: str
    version: int
    split: str
    runs: tuple[str, ...]
    model: str
    max_samples: int | None
    max_new_tokens: int
    engine: str = ""

    @property
    def sides(self) -> list[str]:
        """The folders of the answers: the base's first."""
        return [BASE, *(RUN + run for run in self.runs)]


def evaluated_runs(workspace: Workspace) -> dict[str, str]:
    """The runs that have ended with weights, newest first, and the base model of each."""
    found = {}
    for name in workspace.names("runs"):
        recipe = _recipe_of(workspace, name)
        if recipe is not None and any((_output(workspace, name) / file).is_file() for file in ADAPTERS):
            found[name] = recipe.model_name_or_path
    return found


def installed_engines() -> list[str]:
    """The engines that can answer on this machine."""
    return [name for name in LAUNCHED if importlib.util.find_spec(name) is not None]


def plan_evaluation(
    workspace: Workspace,
    name: str,
    version: Version,
    split: str,
    runs: Sequence[str],
    samples: str,
    tokens: str,
    engine: str = "",
) -> Evaluation:
    """Checks what was chosen. Raises StudioError."""
    known = evaluated_runs(workspace)
    if not runs:
        raise StudioError("evaluate.choose_run", status=422)
    if gone := next((run for run in runs if run not in known), None):
        raise StudioError("evaluate.no_weights", status=422, name=gone)
    bases = {known[run] for run in runs}
    if len(bases) > 1:
        raise StudioError("evaluate.two_bases", status=422, names=", ".join(sorted(bases)))
    if split not in version.rows:
        raise StudioError("errors.missing", status=404, name=split)
    if engine and engine not in installed_engines():
        raise StudioError("errors.parameters", name="engine")
    limit = _number(samples, "evaluate.bad_samples")
    return Evaluation(
        name=name,
        dataset=version.name,
        version=version.number,
        split=split,
        runs=tuple(dict.fromkeys(runs)),
        model=bases.pop(),
        max_samples=limit,
        max_new_tokens=_number(tokens, "evaluate.bad_tokens") or MAX_NEW_TOKENS,
        engine=engine,
    )


def start_evaluation(plan: Evaluation, workspace: Workspace, jobs: Jobs, gpus: tuple[int, ...]) -> Job:
    """Writes the plan and the recipe of each side, and queues the answering. Raises StudioError."""
    folder = workspace.create("evaluations", plan.name)
    try:
        for side in plan.sides:
            (folder / side).mkdir()
            text = yaml.safe_dump(_side_recipe(plan, side, workspace), sort_keys=False, allow_unicode=True)
            write_atomically(folder / side / "lensmith.yaml", text.encode())
        write_atomically(folder / PLAN, json.dumps(asdict(plan), indent=2).encode())
    except OSError as error:
        raise StudioError("errors.disk", status=507, path=folder, reason=error.strerror) from None
    return submit(plan.name, workspace, jobs, gpus)


def submit(name: str, workspace: Workspace, jobs: Jobs, gpus: tuple[int, ...]) -> Job:
    """Queues the answering of an evaluation; what has been answered is not asked again. Raises StudioError."""
    plan = read_plan(workspace, name)
    return jobs.submit(
        JobSpec(
            kind=KIND,
            title=name,
            command=[*module_command("studio.evaluation.answering"), f"evaluations/{name}"],
            cwd=workspace.folder,
            gpus=gpus or (CPU,),
            about={"evaluation": name, "dataset": plan.dataset, "version": plan.version},
            exclusive=f"evaluation/{name}",
            grace=10.0,
        )
    )


def read_plan(workspace: Workspace, name: str) -> Evaluation:
    """Raises StudioError (404)."""
    folder = workspace.existing("evaluations", name)
    try:
        values: dict[str, Any] = json.loads((folder / PLAN).read_bytes())
        return Evaluation(**values | {"runs": tuple(values["runs"])})
    except (OSError, ValueError, KeyError, TypeError):
        raise StudioError("errors.missing", status=404, name=name) from None


def _side_recipe(plan: Evaluation, side: str, workspace: Workspace) -> dict[str, Any]:
    """The recipe of `lensmith eval`; paths are relative to the workspace, where it runs."""
    here = f"datasets/{plan.dataset}/versions/{plan.version}"
    trained = _recipe_of(workspace, plan.runs[0] if side == BASE else side.removeprefix(RUN))
    values: dict[str, Any] = {"model_name_or_path": plan.model}
    if side != BASE:
        values["adapter_name_or_path"] = f"runs/{side.removeprefix(RUN)}/output"
    values |= {"eval_dataset": plan.split, "dataset_dir": here, "output_dir": f"evaluations/{plan.name}/{side}"}
    if plan.max_samples:
        values["max_samples"] = plan.max_samples
    values["max_new_tokens"] = plan.max_new_tokens
    keys = ["cutoff_len", "box_format", "media_dir"]
    if not plan.engine:  # which serves the base in 16 bits and knows the image sizes from the merged model's folder
        keys += ["quantization_bit", "image_max_pixels", "image_min_pixels"]
    given = trained.model_dump(include=set(keys), exclude_defaults=True) if trained else {}
    return values | given


def _recipe_of(workspace: Workspace, run: str) -> Recipe | None:
    """The effective recipe that training wrote; None if there is none that can be read."""
    try:
        values = yaml.safe_load((_output(workspace, run) / "recipe.yaml").read_text(encoding="utf-8"))
        return make_recipe(values) if isinstance(values, dict) else None
    except Exception:  # whatever is wrong with a file of a folder from elsewhere: it cannot be evaluated
        return None


def _output(workspace: Workspace, run: str) -> Path:
    return workspace.folder / "runs" / run / "output"


def _number(text: str, problem: str) -> int | None:
    if not text.strip():
        return None
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 10_000_000:
        raise StudioError(problem, status=422)
    return number
