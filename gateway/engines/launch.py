"""From a replica with a folder to the engine that will be started for it: which one, with what flags, on which GPU."""

from __future__ import annotations

import atexit
import dataclasses
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping
from glob import glob
from pathlib import Path

import click

from gateway.config.engine_args import command_line, engine_args
from gateway.config.schema import ConfigError, ReplicaConfig
from gateway.engines.local import LocalEngine
from gateway.engines.spec import LAUNCHED, EngineSpec
from gateway.planning.gpu import Gpu, NoGpu, query_gpus
from gateway.planning.plan import make_plan
from gateway.planning.types import Plan, Workload
from modelfiles.adapter.lmdeploy import write_lmdeploy_adapter
from modelfiles.adapter.reader import AdapterError
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError

Where = tuple[str | int, ...]
# LMDeploy's image processor otherwise takes every core from the loop that feeds the GPU: 4 threads of 16 cores gave
# 3.4x the requests a second with images of 224x224 pixels and 2.2x with 768x768, measured on an H200.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
MOST_THREADS = 4


def launch(
    folder: ModelFolder, model: str, replica: ReplicaConfig, adapters: Mapping[str, Path], where: Where
) -> tuple[LocalEngine, int]:
    """The engine for a folder, not started yet, and the most pixels of an image (0: no limit). Raises ConfigError."""
    spec = choose(replica.engine, (*where, "engine"))
    try:
        given = engine_args(replica.engine_args)
    except ValueError as error:
        raise ConfigError(f"{error}.", (*where, "engine_args")) from None
    environment = {} if replica.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, replica.gpus))}
    arguments, pixels = command_line(given), 0
    if adapters and not spec.planned:
        message = f"The {spec.name} engine serves no adapters beside the model; merge them with `lensmith export`."
        raise ConfigError(message, where)
    if spec.planned:
        environment |= {variable: str(threads()) for variable in THREADS if variable not in os.environ}
        written, size = write_adapters(folder, adapters, where)
        made = plan(folder, replica, given, size, where)
        if made is None:
            arguments = ["--backend", "pytorch", *arguments]
        else:
            arguments, pixels = made.arguments(), made.image_pixels
            spec = dataclasses.replace(spec, slots=int(made.value("max-batch-size")))
        if written:
            arguments += ["--adapters", *(f"{engine_name(adapter)}={path}" for adapter, path in written.items())]
    if spec.raw_tokens:
        spec = dataclasses.replace(spec, byte_level=folder.byte_level)
    if "tool-call-parser" in given:
        refused = {field: why for field, why in spec.refused.items() if field != "tools"}
        spec = dataclasses.replace(spec, refused=refused)
    engine = LocalEngine(
        spec,
        folder.path,
        model,
        name=f"{model}/{spec.name}-{where[-1]}",
        arguments=arguments,
        adapters=[engine_name(adapter) for adapter in adapters],
        environment=environment,
        vision=bool(folder.vision_config),
    )
    return engine, pixels


def engine_name(adapter: str) -> str:
    """LMDeploy's name of an adapter: under some plain ones, such as `base`, it takes another chat template."""
    return f"adapter-{adapter}"


def write_adapters(folder: ModelFolder, adapters: Mapping[str, Path], where: Where) -> tuple[dict[str, Path], int]:
    """The adapters as LMDeploy loads them, in a directory that goes with this process, and their bytes on the GPU.

    Raises ConfigError.
    """
    if not adapters:
        return {}, 0
    if not installed("peft"):
        raise ConfigError("LMDeploy needs peft for adapters: pip install 'peft<=0.14.0'", where)
    base = Path(tempfile.mkdtemp(prefix="lensmith-adapters-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    written = {}
    for at, (name, path) in enumerate(adapters.items()):
        try:
            write_lmdeploy_adapter(path, folder, base / str(at))
        except (AdapterError, ModelFolderError) as error:
            raise ConfigError(str(error), (*where[:2], "adapters", name)) from None
        written[name] = base / str(at)
    return written, sum(file.stat().st_size for file in base.rglob("*.safetensors"))


def plan(folder: ModelFolder, replica: ReplicaConfig, given: dict[str, str], taken: int, where: Where) -> Plan | None:
    """The plan for the memory that is free now, less `taken` bytes; None if the driver does not say.

    Raises ConfigError.
    """
    try:
        gpus = visible(query_gpus(), replica.gpus)
    except NoGpu as error:
        click.echo(f"lensmith: {error}; LMDeploy sizes its cache by itself.", err=True)
        return None
    if not gpus:
        raise ConfigError("None of the GPUs named is there; nvidia-smi lists them.", (*where, "gpus"))
    smallest = min(gpus, key=lambda gpu: gpu.free)
    smallest = dataclasses.replace(smallest, free=smallest.free - taken)
    try:
        made = make_plan(folder, smallest, Workload(), len(gpus) if replica.gpus else 1, given)
    except ValueError as error:
        raise ConfigError(str(error), where) from None
    if made.cache is None:
        raise ConfigError(f"{made.problems[-1].what} Change: {made.problems[-1].change}.", (*where, "folder"))
    for problem in made.problems:
        click.echo(f"lensmith: {problem.what} Change: {problem.change}.", err=True)
    return made


def visible(gpus: list[Gpu], wanted: list[int] | None) -> list[Gpu]:
    """The cards that an engine gets: those wanted, else the first one that CUDA_VISIBLE_DEVICES leaves."""
    if wanted is None:
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        wanted = [int(named)] if named.isdecimal() else [0]
    return [gpus[at] for at in wanted if at < len(gpus)]


def threads() -> int:
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // 4))


def choose(engine: str | None, where: Where = ()) -> EngineSpec:
    """The engine to start. Raises ConfigError if it isn't installed or has no GPU."""
    if engine is None:
        engine = "lmdeploy" if installed("lmdeploy") and has_gpu() else "transformers"
    spec = LAUNCHED[engine]
    missing = [module for module in spec.modules if not installed(module)]
    if missing:
        raise ConfigError(
            f"The {spec.name} engine needs {' and '.join(missing)}: pip install 'lensmith[{spec.extra}]'", where
        )
    if spec.name == "lmdeploy" and not has_gpu():
        raise ConfigError("The lmdeploy engine needs an NVIDIA GPU; use the engine transformers here.", where)
    return spec


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def has_gpu() -> bool:
    """Whether the NVIDIA driver shows a GPU; `/dev/dxg` is where WSL has it. Containers may lack nvidia-smi."""
    if glob("/proc/driver/nvidia/gpus/*") or glob("/dev/nvidia[0-9]*"):
        return True
    if Path("/dev/dxg").exists() and Path("/usr/lib/wsl/lib/libcuda.so.1").exists():
        return True
    try:
        return bool(query_gpus())
    except NoGpu:
        return False
