"""The jobs of the page Serve: the export of a run, and a model's way into Ollama."""

from __future__ import annotations

import shutil

from modelfiles.hardware.gpus import GIB
from modelfiles.hardware.python_child import module_command
from modelfiles.ollama.names import is_ollama_name, suggest_ollama_name
from studio.errors import StudioError
from studio.jobs.job import Job
from studio.jobs.spec import JobSpec
from studio.jobs.store import Jobs
from studio.workspace.folder import Workspace
from studio.workspace.names import check_name
from studio.workspace.sources import Source
from studio.workspace.versions import TRAIN, VALIDATION, find_version

EXPORT, OLLAMA = "export", "ollama"  # kinds
# A run's recipe validates; an export has nothing to validate on.
NO_VALIDATION = ("eval_dataset=null", 'eval_strategy="no"', "load_best_model_at_end=false", "early_stopping_steps=null")
SPARE = 0.05  # of the base's bytes, for what the file system needs besides
QUANTIZATIONS = ("", "F16", "Q8_0", "Q4_K_M", "Q4_K_S")


def export(workspace: Workspace, jobs: Jobs, source: Source, name: str) -> Job:
    """Merge what a run trained into its base, as models/NAME. Raises StudioError, with figures for a full disk."""
    if source.trained is None or source.recipe is None:
        raise StudioError("serve.nothing_trained", title=source.title)
    name = check_name(name or source.title)
    target = workspace.path("models", name)
    if target.exists():
        raise StudioError("errors.exists", status=409, name=name)
    needed = sum(path.stat().st_size for path in source.base.iterdir() if path.is_file()) * (1 + SPARE)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise StudioError(
            "serve.no_disk", status=507, needed=f"{needed / GIB:.1f}", free=f"{free / GIB:.1f}", folder=target.parent
        )
    command = [*module_command("lensmith"), "export", str(source.recipe)]
    command += [f"model_name_or_path={source.base}", f"adapter_name_or_path={source.trained}", *NO_VALIDATION]
    command += [f"export_dir={target}"]
    about = {"model": name, "run": source.title}
    return jobs.submit(JobSpec(EXPORT, name, command, workspace.folder, about=about, exclusive=f"model/{name}"))


def install(
    workspace: Workspace, jobs: Jobs, source: Source, name: str, server: str, quantize: str, data: str = ""
) -> Job:
    """Put a model folder into an Ollama and verify it there. Raises StudioError.

    data: the dataset version (NAME@N) whose first rows are asked there and here; held out ones if it has some.
    """
    if source.trained is not None:
        raise StudioError("serve.export_first", title=source.title)
    name = name.strip() or suggest_ollama_name(source.title)
    check_name(name.partition(":")[0])
    if not is_ollama_name(name):
        raise StudioError("serve.bad_ollama_name", name=name[:100], example=suggest_ollama_name(name))
    if quantize not in QUANTIZATIONS:
        raise StudioError("errors.parameters", name="quantize")
    command = [*module_command("lensmith"), "modelfile", "install", str(source.base), "--name", name]
    command += ["--server", server] if server else []
    command += ["--quantize", quantize] if quantize else []
    if data:
        version = find_version(workspace, data)
        split = VALIDATION if VALIDATION in version.rows else TRAIN
        command += ["--data", str(version.folder / f"{split}.jsonl")]
    about = {"model": source.title}
    return jobs.submit(JobSpec(OLLAMA, name, command, workspace.folder, about=about, exclusive=f"ollama/{name}"))
