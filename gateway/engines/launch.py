"""From a replica with a folder to the engine that will be started for it: which one, with what flags, on which GPU."""

from __future__ import annotations

import atexit
import dataclasses
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from glob import glob
from pathlib import Path

from gateway.config.engine_args import command_line, engine_args
from gateway.config.schema import ConfigError, ReplicaConfig
from gateway.engines.local import LocalEngine
from gateway.engines.spec import LAUNCHED, LMDEPLOY, VLLM, EngineSpec
from gateway.planning.gpu import Gpu, NoGpu, query_gpus
from gateway.planning.plan import make_engine_plan
from gateway.planning.tool_parsers import answer_flags, vllm_answer_flags
from gateway.planning.types import EnginePlan, Workload
from gateway.planning.vllm_plan import make_vllm_plan
from modelfiles.adapter.lmdeploy import write_lmdeploy_adapter
from modelfiles.adapter.reader import AdapterError, read_adapter, read_plain_adapter
from modelfiles.folder.located_yaml import KeyPath
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError

LOG = logging.getLogger("lensmith.launch")
# LMDeploy's image processor otherwise takes every core from the loop that feeds the GPU: 4 threads of 16 cores gave
# 3.4x the requests a second with images of 224x224 pixels and 2.2x with 768x768, measured on an H200.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
MAX_THREADS = 4


def launch(
    folder: ModelFolder,
    model: str,
    replica: ReplicaConfig,
    adapters: Mapping[str, Path],
    where: KeyPath,
    max_images: int,
) -> tuple[LocalEngine, int]:
    """The engine for a folder, not started yet, and the maximum pixels of an image (0: no limit).

    `max_images`: most of them in one request. Raises ConfigError.
    """
    spec = choose(replica.engine, (*where, "engine"))
    try:
        given = engine_args(replica.engine_args)
    except ValueError as error:
        raise ConfigError(f"{error}.", (*where, "engine_args")) from None
    environment = {} if replica.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, replica.gpus))}
    arguments, pixels = command_line(given), 0
    if spec.planned:
        if spec.name == LMDEPLOY.name:
            environment |= {variable: str(thread_count()) for variable in THREADS if variable not in os.environ}
            loaded = write_adapters(folder, adapters, where)
        else:
            loaded = check_adapters(folder, adapters, where)
            given = {**lora_flags(loaded), **given}
        engine_plan = plan_for_replica(spec, folder, replica, given, weight_bytes(loaded), max_images, where)
        if engine_plan is None:
            arguments = command_line({**UNPLANNED[spec.name](folder), **given})
        else:
            arguments, pixels = engine_plan.arguments(), engine_plan.image_pixels
            batch = "max-batch-size" if spec.name == LMDEPLOY.name else "max-num-seqs"
            spec = dataclasses.replace(spec, slots=int(engine_plan.value(batch)))
    else:
        loaded = check_adapters(folder, adapters, where)
    if loaded:
        option = "--lora-modules" if spec.name == VLLM.name else "--adapters"
        arguments += [option, *(f"{engine_name(adapter)}={path}" for adapter, path in loaded.items())]
    if spec.raw_tokens:
        spec = dataclasses.replace(spec, byte_level=folder.byte_level)
    if not spec.planned and "tools" not in (folder.chat_template or ""):
        spec = dataclasses.replace(
            spec, refused={**spec.refused, "tools": "the model's chat template has no place for it"}
        )
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


# Flags that the gateway counts on where no GPU could be asked and so nothing is planned.
UNPLANNED: Mapping[str, Callable[[ModelFolder], dict[str, str]]] = {
    LMDEPLOY.name: lambda folder: {**answer_flags(folder), "backend": "pytorch"},
    VLLM.name: lambda folder: {**vllm_answer_flags(folder), "generation-config": "vllm"},
}
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes; vllm 0.33, config/lora.py


def lora_flags(adapters: Mapping[str, Path]) -> dict[str, str]:
    """What vLLM must be told to load these adapters, layers of the vision tower included."""
    if not adapters:
        return {}
    ranks = [matrices.rank for path in adapters.values() for matrices in read_adapter(path).lora.values()]
    rank = next((allowed for allowed in VLLM_RANKS if allowed >= max(ranks, default=1)), VLLM_RANKS[-1])
    return {
        "enable-lora": "true",
        "enable-tower-connector-lora": "true",
        "max-lora-rank": str(rank),
        "max-loras": str(len(adapters)),
    }


def weight_bytes(adapters: Mapping[str, Path]) -> int:
    return sum(file.stat().st_size for path in adapters.values() for file in path.glob("*.safetensors"))


def write_adapters(folder: ModelFolder, adapters: Mapping[str, Path], where: KeyPath) -> dict[str, Path]:
    """The adapters as LMDeploy loads them, in a directory that goes with this process. Raises ConfigError."""
    if not adapters:
        return {}
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
    return written


def plan_for_replica(
    spec: EngineSpec,
    folder: ModelFolder,
    replica: ReplicaConfig,
    given: dict[str, str],
    taken: int,
    max_images: int,
    where: KeyPath,
) -> EnginePlan | None:
    """The plan for the memory that is free now, less `taken` bytes; None if the driver does not say.

    Raises ConfigError.
    """
    try:
        gpus = visible(query_gpus(), replica.gpus)
    except NoGpu as error:
        LOG.warning("%s; the %s engine sizes its cache by itself.", error, spec.name)
        return None
    if not gpus:
        raise ConfigError("None of the GPUs named is there; nvidia-smi lists them.", (*where, "gpus"))
    smallest = min(gpus, key=lambda gpu: gpu.free)
    smallest = dataclasses.replace(smallest, free=smallest.free - taken)
    try:
        tp = len(gpus) if replica.gpus else 1
        if spec.name == VLLM.name:
            engine_plan = make_vllm_plan(folder, smallest, Workload(), max_images, tp, given)
        else:
            engine_plan = make_engine_plan(folder, smallest, Workload(), tp, given)
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


def thread_count(cores: int | None = None) -> int:
    """Threads of LMDeploy's image processing on a machine with so many cores, this one's if it is not said."""
    return max(1, min(MAX_THREADS, (cores or len(os.sched_getaffinity(0))) // 4))


def choose(engine: str | None, where: KeyPath = ()) -> EngineSpec:
    """The engine to start. Raises ConfigError if it isn't installed or has no GPU."""
    if engine is None:
        engine = "lmdeploy" if installed("lmdeploy") and has_gpu() else "transformers"
    spec = LAUNCHED[engine]
    missing = [module for module in spec.modules if not installed(module)]
    if missing:
        package = f"'lensmith[{spec.extra}]'" if spec.extra else spec.name
        raise ConfigError(f"The {spec.name} engine needs {' and '.join(missing)}: pip install {package}", where)
    if spec.needs_gpu and not has_gpu():
        raise ConfigError(f"The {spec.name} engine needs an NVIDIA GPU; use the engine transformers here.", where)
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
