"""What somebody has filled in, as the recipe it stands for, with a sentence beside each field that is wrong."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from finetune.data.hub import is_hub_id
from finetune.recipe.load import recipe_problems
from modelfiles.hardware.python_child import module_command
from studio.errors import StudioError
from studio.jobs.devices import Device
from studio.jobs.spec import CPU
from studio.training.goals import GOALS, Goal, goal_values
from studio.training.schema_form import as_text, schema_groups
from studio.workspace.folder import Workspace
from studio.workspace.models import count_parameters, find_folder
from studio.workspace.names import MAX_NAME, check_name
from studio.workspace.versions import TRAIN, VALIDATION, Version, find_version

ADVANCED = "key."  # how the names of the advanced fields begin
OTHER = "other"  # the model that is typed
MAX_TEXT = 2000  # characters of a field


@dataclass(frozen=True)
class Problem:
    """A sentence: a key of the locale files with its values, or finetune's own words (`text`)."""

    key: str = ""
    values: Mapping[str, object] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Draft:
    """A run that is being planned.

    recipe: what differs from the recipe's defaults; suggested: what the goal sets of it; problems: by field, "key.X"
    for an advanced one, "" for what concerns several; gpus: indices, (CPU,) for the processor; busy: whether a job has
    one of them; card: for `check --gpu`.
    """

    name: str
    version: Version | None
    parameters: int
    recipe: dict[str, Any]
    suggested: dict[str, Any]
    problems: dict[str, Problem]
    gpus: tuple[int, ...]
    busy: bool
    card: str | None
    price: float | None

    @property
    def yaml(self) -> str:
        return yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True)

    @property
    def recipe_path(self) -> str:
        return f"runs/{self.name}/recipe.yaml"

    @property
    def command(self) -> list[str]:
        """What the job runs in the workspace folder, where modules of the user's own may lie."""
        train = [*module_command("lensmith"), "train", self.recipe_path]
        if len(self.gpus) <= 1:
            return train
        return [*module_command("torch.distributed.run"), *self._processes, "--no-python", *train]

    @property
    def _processes(self) -> list[str]:
        return ["--standalone", "--nproc-per-node", str(len(self.gpus))]

    def command_line(self, workspace: Workspace) -> str:
        """What to type to do the same without this page."""
        visible = f"CUDA_VISIBLE_DEVICES={','.join(map(str, self.gpus))} " if self.gpus != (CPU,) else ""
        many = ["torchrun", *self._processes, "-m"] if len(self.gpus) > 1 else []
        command = shlex.join([*many, "lensmith", "train", self.recipe_path])
        return f"cd {shlex.quote(str(workspace.folder))} && {visible}{command}"

    @property
    def digest(self) -> str:
        """Of all that decides what `check` says. A version of a dataset never changes."""
        return hashlib.sha256(f"{self.yaml}|{self.card}|{self.price}".encode()).hexdigest()[:16]


def read_draft(form: Mapping[str, str], gpus: Sequence[str], workspace: Workspace, devices: Sequence[Device]) -> Draft:
    """The form's fields (model, data, goal, name, card, price, key.*), and the GPUs that were ticked."""
    given = {name: value.strip()[:MAX_TEXT] for name, value in form.items()}
    problems: dict[str, Problem] = {}
    version = _version(given.get("data", ""), workspace, problems)
    goal: Goal = next((goal for goal in GOALS if goal == given.get("goal")), "balanced")
    name = _name(given.get("name", ""), f"{version.name if version else 'run'}-{goal}", workspace, problems)
    model, parameters = _model(given, workspace, problems)
    chosen = _devices(gpus, devices, problems)
    suggested = _suggested(goal, version, parameters, chosen)
    recipe: dict[str, Any] = {"model_name_or_path": model}
    if version is not None:
        here = f"datasets/{version.name}/versions/{version.number}"
        recipe |= {"dataset": TRAIN, "dataset_dir": here}
        recipe |= {"box_format": version.box_format} if version.box_format else {}
    advanced = _advanced(given, problems)
    if advanced.get("per_device_train_batch_size") == "auto":  # which divides the rows of a step that were suggested
        rows = suggested["per_device_train_batch_size"] * suggested["gradient_accumulation_steps"]
        advanced.setdefault("gradient_accumulation_steps", rows)
    recipe |= {"output_dir": f"runs/{name}/output"} | suggested | advanced
    for key, sentence in recipe_problems(recipe).items():
        problems.setdefault(f"{ADVANCED}{key}" if key else "", Problem(text=sentence))
    return Draft(
        name=name,
        version=version,
        parameters=parameters,
        recipe=recipe,
        suggested=suggested,
        problems=problems,
        gpus=tuple(device.index for device in chosen),
        busy=any(device.job is not None for device in chosen),
        card=given.get("card") or (chosen[0].card if chosen[0].is_gpu else None),
        price=_price(given.get("price", ""), problems),
    )


def fields_of_run(workspace: Workspace, run: str) -> dict[str, str]:
    """The form's fields that make the recipe of an earlier run. Raises StudioError (404)."""
    try:
        values = yaml.safe_load((workspace.existing("runs", run) / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        raise StudioError("errors.missing", status=404, name=run)
    known = {field.key for fields in schema_groups().values() for field in fields}
    advanced = {f"{ADVANCED}{key}": as_text(value) for key, value in values.items() if key in known}
    folder = re.fullmatch(r"datasets/([^/]+)/versions/(\d+)", str(values.get("dataset_dir")))
    data = {"data": f"{folder[1]}@{folder[2]}"} if folder else {}
    return {"model": str(values.get("model_name_or_path", "")), "goal": "balanced"} | data | advanced


def _suggested(goal: Goal, version: Version | None, parameters: int, chosen: Sequence[Device]) -> dict[str, Any]:
    first = chosen[0]
    return goal_values(
        goal,
        rows=version.rows.get(TRAIN, 0) if version else 0,
        parameters=parameters,
        card_gib=first.total_gib if first.is_gpu else None,
        validation=VALIDATION if version and VALIDATION in version.rows else None,
        gpus=len(chosen),
    )


def _model(given: Mapping[str, str], workspace: Workspace, problems: dict[str, Problem]) -> tuple[str, int]:
    """What the recipe calls the model, and its weights' number where it is on this machine."""
    model = given.get("model_other", "") if given.get("model") == OTHER else given.get("model", "")
    if not model:
        problems["model"] = Problem("train.choose_model")
        return "", 0
    folder = find_folder(model, workspace)
    if folder is None and not is_hub_id(model):
        problems["model"] = Problem("train.no_such_model", {"model": model})
    return model, count_parameters(folder) if folder is not None else 0


def _name(text: str, suggestion: str, workspace: Workspace, problems: dict[str, Problem]) -> str:
    if not text:
        return workspace.free_name("runs", suggestion[:MAX_NAME])
    try:
        name = check_name(text)
    except StudioError as error:
        problems["name"] = Problem(error.message, error.values)
        return workspace.free_name("runs", suggestion[:MAX_NAME])
    if workspace.path("runs", name).exists():
        problems["name"] = Problem("errors.exists", {"name": name})
    return name


def _version(key: str, workspace: Workspace, problems: dict[str, Problem]) -> Version | None:
    if not key:
        problems["data"] = Problem("train.choose_data")
        return None
    try:
        version = find_version(workspace, key)
    except StudioError as error:
        problems["data"] = Problem(error.message, error.values)
        return None
    if TRAIN not in version.rows:
        problems["data"] = Problem("train.no_rows", {"name": version.name})
    return version


def _devices(ticked: Sequence[str], devices: Sequence[Device], problems: dict[str, Problem]) -> list[Device]:
    """The ticked ones; the one with the most free memory if none is."""
    chosen = [device for device in devices if str(device.index) in ticked]
    if len(chosen) < len(set(ticked)):
        problems["gpus"] = Problem("train.no_such_gpu")
    return chosen or [max(devices, key=lambda device: (device.job is None, device.free_gib))]


def _advanced(given: Mapping[str, str], problems: dict[str, Problem]) -> dict[str, Any]:
    """The values of the advanced fields that were filled in, as YAML reads them."""
    known = {field.key: field for fields in schema_groups().values() for field in fields}
    values: dict[str, Any] = {}
    for name, text in given.items():
        key = name.removeprefix(ADVANCED)
        if not name.startswith(ADVANCED) or not text:
            continue
        if key not in known:
            problems[""] = Problem("train.unknown_key", {"name": key[:100]})
            continue
        values[key] = text
        if known[key].kind != "text":
            try:
                values[key] = yaml.safe_load(text)
            except yaml.YAMLError:
                problems[name] = Problem("train.no_value", {"value": text[:100]})
    return values


def _price(text: str, problems: dict[str, Problem]) -> float | None:
    try:
        price = float(text) if text else None
    except ValueError:
        price = -1.0
    if price is not None and not 0 <= price < 1e6:
        problems["price"] = Problem("train.bad_price")
        return None
    return price
