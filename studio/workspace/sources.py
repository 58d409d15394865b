"""What of a workspace can be served: merged models, and bases with the adapters that runs have trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from modelfiles.adapter.reader import WEIGHTS
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from studio.errors import StudioError
from studio.workspace.folder import Workspace
from studio.workspace.models import find_folder, known_models

RECIPE, OUTPUT = "recipe.yaml", "output"
WHOLE = "trained_weights.safetensors"  # what `freeze` and `full` leave instead of an adapter
RUN, MODEL = "run:", "model:"  # how keys begin


@dataclass(frozen=True)
class Source:
    """A base, with an adapter or alone.

    key: what forms send; title: what the page calls it; base: its folder; trained: what a run left, an adapter or, if
    `whole`, weights that must be exported before they are served; recipe: of the run; image_pixels: the most pixels of
    an image in its training, 0 for the base's own limit.
    """

    key: str
    title: str
    base: Path
    trained: Path | None = None
    whole: bool = False
    recipe: Path | None = None
    image_pixels: int = 0

    @property
    def adapter(self) -> Path | None:
        return None if self.whole else self.trained

    @property
    def digest(self) -> str:
        """The beginning of the adapter's sha256, as the engine reports it; "" without an adapter."""
        if self.adapter is None:
            return ""
        file = self.adapter / WEIGHTS
        return _digest(file, file.stat().st_mtime_ns)

    @property
    def bytes(self) -> int:
        """The base's weights on the disk. Raises StudioError if it is no model folder."""
        try:
            return sum(tensor.size for tensor in ModelFolder.open(self.base).tensors.values())
        except ModelFolderError as error:
            raise StudioError(str(error)) from None


@lru_cache(maxsize=64)
def _digest(file: Path, changed: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


def trained_sources(workspace: Workspace) -> list[Source]:
    """What runs have trained, newest first."""
    return [source for name in workspace.names("runs") if (source := _of_run(workspace, name)) is not None]


def model_sources(workspace: Workspace) -> list[Source]:
    """Model folders on this machine: merged ones first, then bases."""
    found = []
    for model in known_models(workspace):
        folder = find_folder(model.value, workspace)
        if folder is not None:
            found.append(Source(f"{MODEL}{model.value}", model.title, folder))
    return found


def find_source(workspace: Workspace, key: str) -> Source:
    """The source that a form names; a path of a model folder is one too. Raises StudioError (404)."""
    if key.startswith(RUN):
        workspace.existing("runs", key.removeprefix(RUN))
        found = _of_run(workspace, key.removeprefix(RUN))
        if found is None:
            raise StudioError("errors.missing", status=404, name=key.removeprefix(RUN))
        return found
    value = key.removeprefix(MODEL).strip()
    folder = find_folder(value, workspace) if value else None
    if folder is None:
        raise StudioError("serve.no_model", status=404, name=value[:200])
    return Source(f"{MODEL}{value}", folder.name, folder)


def _of_run(workspace: Workspace, name: str) -> Source | None:
    folder = workspace.path("runs", name)
    output = folder / OUTPUT
    recipe = next((path for path in (output / RECIPE, folder / RECIPE) if path.is_file()), None)
    trained = next(
        (path for path in _candidates(output) if (path / WEIGHTS).is_file() or (path / WHOLE).is_file()), None
    )
    if recipe is None or trained is None:
        return None
    values = _values(recipe)
    base = find_folder(str(values.get("model_name_or_path", "")), workspace)
    if base is None:
        return None
    pixels = values.get("image_max_pixels")
    return Source(
        f"{RUN}{name}",
        name,
        base,
        trained,
        whole=not (trained / WEIGHTS).is_file(),
        recipe=recipe,
        image_pixels=pixels if isinstance(pixels, int) and pixels > 0 else 0,
    )


def _candidates(output: Path) -> Iterator[Path]:
    """The run's result, then its checkpoints, the latest first."""
    yield output
    steps = [path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    yield from sorted(steps, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def _values(recipe: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
