"""From a replica with a folder to the engine that will be started for it: which one, with what flags, on which GPU."""

from __future__ import annotations

import atexit
import dataclasses
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from glob import glob
from pathlib import Path

from gateway.config.engine_args import command_line, engine_args
from gateway.config.schema import ConfigError, ReplicaConfig
from gateway.engines.local import LocalEngine
from gateway.engines.spec import LAUNCHED, EngineSpec
from gateway.planning.gpu import Gpu, NoGpu, query_gpus
from gateway.planning.plan import make_engine_plan
from gateway.planning.tool_parsers import answer_flags
from gateway.planning.types import EnginePlan, Workload
from modelfiles.adapter.lmdeploy import write_lmdeploy_adapter
from modelfiles.adapter.reader import AdapterError, read_plain_adapter
from modelfiles.folder.located_yaml import KeyPath
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError

LOG = logging.getLogger("lensmith.launch")
# LMDeploy's image processor otherwise takes every core from the loop that feeds the GPU: 4 threads of 16 cores gave
# 3.4x the requests a second with images of 224x224 pixels and 2.2x with 768x768, measured on an H200.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
MAX_THREADS = 4


def launch(
    folder: ModelFolder, model: str, replica: ReplicaConfig, adapters: Mapping[str, Path], where: KeyPath
) -> tuple[LocalEngine, int]:
    """The engine for a folder, not started yet, and the maximum pixels of an image (0: no limit).

    Raises ConfigError.
    """
    spec = choose(replica.engine, (*where, "engine"))
    try:
        given = engine_args(replica.engine_args)
    except ValueError as error:
        raise ConfigError(f"{error}.", (*where, "engine_args")) from None
    environment = {} if replica.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, replica.gpus))}
    arguments, pixels = command_line(given), 0
    if spec.planned:
        environment |= {variable: str(thread_count()) for variable in THREADS if variable not in os.environ}
        loaded, size = write_adapters(folder, adapters, where)
        engine_plan = plan_for_replica(folder, replica, given, size, where)
        if engine_plan is None:
            arguments = command_line({**answer_flags(folder), "backend": "pytorch", **given})
        else:
            arguments, pixels = engine_plan.arguments(), engine_plan.image_pixels
            spec = dataclasses.replace(spec, slots=int(engine_plan.value("max-batch-size")))
    else:
        loaded = check_adapters(folder, adapters, where)
    if loaded:
        arguments += ["--adapters", *(f"{engine_name(adapter)}={path}" for adapter, path in loaded.items())]
    if spec.raw_tokens:
        spec = dataclasses.replace(spec, byte_level=folder.byte_level)
    if "--tool-call-parser" in arguments:
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


def check_adapters(folder: ModelFolder, adapters: Mapping[str, Path], where: KeyPath) -> dict[str, Path]:
    """The adapters' folders, as the embedded engine loads them. Raises ConfigError if it would refuse one."""
    for name, path in adapters.items():
        try:
            read_plain_adapter(path, folder)
        except (AdapterError, ModelFolderError) as error:
            raise ConfigError(str(error), (*where[:2], "adapters", name)) from None
    return {name: path.expanduser().resolve() for name, path in adapters.items()}


def write_adapters(folder: ModelFolder, adapters: Mapping[str, Path], where: KeyPath) -> tuple[dict[str, Path], int]:
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
    for index, (name, path) in enumerate(adapters.items()):
        try:
            write_lmdeploy_adapter(path, folder, base / str(index))
        except (AdapterError, ModelFolderError) as error:
            raise ConfigError(str(error), (*where[:2], "adapters", name)) from None
        written[name] = base / str(index)
    return written, sum(file.stat().st_size for file in base.rglob("*.safetensors"))


def plan_for_replica(
    folder: ModelFolder, replica: ReplicaConfig, given: dict[str, str], taken: int, where: KeyPath
) -> EnginePlan | None:
    """The plan for the memory that is free now, less `taken` bytes; None if the driver does not say.

    Raises ConfigError.
    """
    try:
        gpus = visible(query_gpus(), replica.gpus)
    except NoGpu as error:
        LOG.warning("%s; LMDeploy sizes its cache by itself.", error)
        return None
    if not gpus:
        raise ConfigError("None of the GPUs named is there; nvidia-smi lists them.", (*where, "gpus"))
    smallest = min(gpus, key=lambda gpu: gpu.free)
    smallest = dataclasses.replace(smallest, free=smallest.free - taken)
    try:
        engine_plan = make_engine_plan(folder, smallest, Workload(), len(gpus) if replica.gpus else 1, given)
    except ValueError as error:
        raise ConfigError(str(error), where) from None
    if engine_plan.cache is None:
        problem = engine_plan.problems[-1]
        raise ConfigError(f"{problem.what} Change: {problem.change}.", (*where, "folder"))
    for problem in engine_plan.problems:
        LOG.warning("%s Change: %s.", problem.what, problem.change)
    return engine_plan


def visible(gpus: list[Gpu], wanted: list[int] | None) -> list[Gpu]:
    """The cards that an engine gets: those wanted, else the first one that CUDA_VISIBLE_DEVICES leaves."""
    if wanted is None:
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        wanted = [int(named)] if named.isdecimal() else [0]
    return [gpus[index] for index in wanted if index < len(gpus)]


def thread_count() -> int:
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // 4))


def choose(engine: str | None, where: KeyPath = ()) -> EngineSpec:
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
