"""The base models that can be chosen without typing: in the workspace, in the hub's cache, and the demo's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Literal

from finetune.data.hub import is_hub_id
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.folder.provenance import PROVENANCE
from studio.workspace.folder import Workspace

Where = Literal["workspace", "hub", "demo"]
TINY = 100_000_000  # parameters: below, a processor trains it in minutes


@dataclass(frozen=True)
class KnownModel:
    """A base model.

    value: what the recipe's model_name_or_path is; parameters: how many weights it has; tuned: whether a run's weights
    were merged into it.
    """

    value: str
    title: str
    where: Where
    parameters: int
    tuned: bool


def known_models(workspace: Workspace) -> list[KnownModel]:
    """Vision-language models whose weights are on this machine."""
    found: dict[str, KnownModel] = {}
    for value, title, folder, where in _candidates(workspace):
        parameters = count_parameters(folder)
        if parameters and value not in found:
            found[value] = KnownModel(value, title, where, parameters, (folder / PROVENANCE).is_file())
    return list(found.values())


def find_folder(value: str, workspace: Workspace) -> Path | None:
    """The folder of a model on this machine, by path or hub id; None if there is none.

    A path that is not absolute begins in the workspace, where training runs.
    """
    if "\0" not in value and (workspace.folder / Path(value).expanduser()).is_dir():
        return workspace.folder / Path(value).expanduser()
    if not is_hub_id(value):
        return None
    snapshots = hub_cache() / f"models--{value.replace('/', '--')}" / "snapshots"
    return next((path for path in _newest_first(snapshots) if (path / "config.json").exists()), None)


def count_parameters(folder: Path) -> int:
    """Weights of a vision-language model, from its files' headers; 0 for a folder that is none or is not whole."""
    try:
        changed = (folder / "config.json").stat().st_mtime_ns
    except OSError:
        return 0
    return _count(folder, changed)


@lru_cache(maxsize=256)
def _count(folder: Path, changed: int) -> int:
    try:
        model = ModelFolder.open(folder)
        return sum(prod(info.shape) for info in model.tensors.values()) if model.vision_config else 0
    except ModelFolderError:
        return 0


def _candidates(workspace: Workspace) -> Iterator[tuple[str, str, Path, Where]]:
    for name in workspace.names("models"):
        yield f"models/{name}", name, workspace.folder / "models" / name, "workspace"
    for entry in _newest_first(hub_cache()):
        if entry.name.startswith("models--") and entry.name.count("--") == 2:
            value = entry.name.removeprefix("models--").replace("--", "/")
            folder = find_folder(value, workspace)
            if folder is not None:
                yield value, value, folder, "hub"
    if (examples := find_spec("examples")) is not None and examples.origin:
        folder = Path(examples.origin).parent / "shapes-vl"
        yield str(folder), "shapes-vl", folder, "demo"


def hub_cache() -> Path:
    """Where the Hugging Face hub's client keeps downloads, by its own variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _newest_first(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: -path.stat().st_mtime)
    except OSError:
        return []
