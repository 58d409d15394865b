"""Does LMDeploy allocate the key and value cache that `lensmith plan serve` says? Six settings on one GPU.

    python -m benchmarks.lmdeploy_kv --work /tmp/kv --out result.json

The models are examples/shapes-vl and one of Qwen3-VL-2B's shape with random weights. A smaller card is imitated: the
engine is told that only so much memory is free, and PyTorch may not allocate more. Every engine then answers requests
with the largest images that the plan allows, so that a plan which leaves too little memory fails here. One setting
starts `lmdeploy serve api_server` with the plan's arguments. Each runs in a process of its own; they import while they
wait for the GPU, which one at a time has. Writes the planned and the engine's own tokens and where the memory went.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.planning.gpu import CARDS, Gpu, query_gpus
from gateway.planning.plan import make_engine_plan
from gateway.planning.types import EnginePlan, Workload
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.hardware.gpus import GIB

ROOT = Path(__file__).parents[1]
WORKLOAD: dict[str, Any] = {"images": 8, "image_size": (1296, 968)}
SETTINGS: dict[str, dict[str, Any]] = {
    # The published T4 recipe, the plan's own choice for a T4, and for an L4.
    "t4-recipe": {
        "card": "t4",
        "flags": {
            "session-len": "4096",
            "max-batch-size": "4",
            "max-prefill-token-num": "8192",
            "cache-max-entry-count": "0.6",
        },
    },
    "t4-plan": {"card": "t4", "flags": {}},
    "l4-plan": {"card": "l4", "flags": {}},
    # The whole card: LMDeploy's default share, a small model with a half of it, and the server with the plan's choice.
    "whole-default": {
        "flags": {"max-batch-size": "256", "max-prefill-token-num": "8192", "cache-max-entry-count": "0.8"},
    },
    "shapes-vl": {"model": "shapes-vl", "flags": {"max-prefill-token-num": "4096", "cache-max-entry-count": "0.5"}},
    "api-server": {"flags": {}},
}


def model_folder(setting: dict[str, Any], work: Path) -> Path:
    return ROOT / "examples" / "shapes-vl" if setting.get("model") else work / "model"


def plan_for(setting: dict[str, Any], work: Path, real: Gpu) -> EnginePlan:
    folder = model_folder(setting, work)
    gpu = CARDS[setting["card"]] if "card" in setting else real
    return make_engine_plan(ModelFolder.open(folder), gpu, Workload(**WORKLOAD), 1, setting["flags"])


def engine_settings(plan: EnginePlan) -> dict[str, Any]:
    """The plan's choices under the names of LMDeploy's PytorchEngineConfig."""
    names = {choice.option.replace("-", "_"): choice.value for choice in plan.choices if choice.option != "backend"}
    for name in ("session_len", "max_batch_size", "max_prefill_token_num"):
        names[name] = int(names[name])
    names["cache_max_entry_count"] = float(names["cache_max_entry_count"])
    return names


def in_process(plan: EnginePlan, folder: Path, cap: int | None) -> dict[str, Any]:
    """Build the engine in this process, note its cache and the memory at every step, and let it answer."""
    import lmdeploy.pytorch.engine.model_agent.agent as agent
    import torch
    from lmdeploy import GenerationConfig, PytorchEngineConfig, pipeline
    from PIL import Image

    free, total = torch.cuda.mem_get_info()
    torch.ones(1, device="cuda")
    figures: dict[str, Any] = {"torch": torch.__version__, "context_first": free - torch.cuda.mem_get_info()[0]}
    hidden = total - cap if cap else 0
    own_free = agent.get_gpu_memory

    def capped_free(*args: Any) -> tuple[int, int]:
        left, all_of_it = own_free(*args)
        figures["free_at_sizing"] = left - hidden
        figures["allocated_at_sizing"] = torch.cuda.memory_allocated()
        figures["reserved_at_sizing"] = torch.cuda.memory_reserved()
        return left - hidden, all_of_it

    agent.get_gpu_memory = capped_free
    if cap:
        torch.cuda.set_per_process_memory_fraction((cap - 512 * 2**20) / total)
    began = time.monotonic()
    pipe = pipeline(str(folder), backend_config=PytorchEngineConfig(**engine_settings(plan)), log_level="INFO")
    engine = pipe.async_engine.engine
    config = engine.executor.cache_config
    figures |= {
        "blocks": config.num_gpu_blocks,
        "block_tokens": config.block_size,
        "prefill_tokens": config.max_prefill_token_num,
        "longest_session": engine.max_session_len,
        "start_seconds": round(time.monotonic() - began, 1),
        "free_when_ready": torch.cuda.mem_get_info()[0] - hidden,
        "reserved_when_ready": torch.cuda.memory_reserved(),
    }
    torch.cuda.reset_peak_memory_stats()
    side = int(plan.image_pixels**0.5) // 32 * 32
    images = [Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).resize((side, side)) for _ in range(4)]
    answers = pipe([("What is this?", image) for image in images], gen_config=GenerationConfig(max_new_tokens=8))
    figures |= {
        "image_side": side,
        "prompt_tokens": [answer.input_token_len for answer in answers],
        "answer_tokens": [answer.generate_token_len for answer in answers],
        "peak_allocated": torch.cuda.max_memory_allocated(),
        "peak_reserved": torch.cuda.max_memory_reserved(),
        "free_after_answers": torch.cuda.mem_get_info()[0] - hidden,
    }
    return figures


def api_server(plan: EnginePlan, folder: Path, log: Path) -> dict[str, Any]:
    """Start the server as `lensmith serve` would, and read the cache's size from its log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lmdeploy", "serve", "api_server", str(folder), *plan.arguments()]
    command += ["--server-name", "127.0.0.1", "--server-port", str(port), "--log-level", "INFO"]
    figures: dict[str, Any] = {}
    began = time.monotonic()
    with log.open("w") as sink:
        server = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        assert server.stdout is not None

        def read() -> None:
            for line in server.stdout or ():
                sink.write(f"{time.monotonic() - began:7.2f} {line}")
                for name in ("num_gpu_blocks", "block_size", "max_prefill_token_num"):
                    if "CacheConfig(" in line and (found := re.search(rf"\b{name}=(\d+)", line)):
                        figures[name] = int(found[1])

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            while server.poll() is None and time.monotonic() - began < 120:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    figures["start_seconds"] = round(time.monotonic() - began, 1)
                    break
                time.sleep(0.2)
            figures["nvidia_smi_free_when_ready"] = query_gpus()[0].free
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            reader.join(5)
    figures["blocks"], figures["block_tokens"] = figures.pop("num_gpu_blocks", 0), figures.pop("block_size", 64)
    return figures


def wait_for_memory() -> Gpu:
    """The card once the process before has given its memory back."""
    for _ in range(60):
        real = query_gpus()[0]
        if real.free > 0.98 * real.memory:
            break
        time.sleep(0.5)
    return real


def child(name: str, work: Path) -> None:
    """One setting: import, wait for the GPU, measure, write NAME.json."""
    setting = SETTINGS[name]
    if name != "api-server":
        pass
    with (work / "gpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        real = wait_for_memory()
        plan = plan_for(setting, work, real)
        assert plan.cache is not None, plan.problems
        folder = model_folder(setting, work)
        result: dict[str, Any] = {
            "setting": name,
            "model": setting.get("model", "2B"),
            "card": plan.gpu.name,
            "memory": plan.gpu.memory,
            "free": plan.gpu.free,
            "capability": plan.gpu.capability,
            "flags": {choice.option: choice.value for choice in plan.choices},
            "planned_tokens": plan.cache.tokens,
            "planned_free": plan.free,
            "planned_weights": plan.weights,
            "planned_activations": plan.activations,
            "problems": [problem.what for problem in plan.problems],
        }
        try:
            if name == "api-server":
                result |= api_server(plan, folder, work / "api-server.times.log")
            else:
                cap = CARDS[setting["card"]].memory if "card" in setting else None
                result |= in_process(plan, folder, cap)
            result["engine_tokens"] = result["blocks"] * result["block_tokens"]
            result["error_percent"] = round(100 * (plan.cache.tokens / max(1, result["engine_tokens"]) - 1), 2)
        except BaseException as error:
            traceback.print_exc()
            result["failed"] = f"{type(error).__name__}: {error}"[:500]
        (work / f"{name}.json").write_text(json.dumps(result))
        sys.stdout.flush()
        os._exit(0)  # gives the GPU back at once; the lock goes with the process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="result as JSON; the engines' logs go beside it")
    parser.add_argument("--child", choices=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.work)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    real = query_gpus()[0]
    if not (args.work / "model" / "model.safetensors").exists():
        subprocess.run([sys.executable, "-c", WRITE_MODEL, str(args.work / "model")], cwd=ROOT, check=True)
    print(f"model written after {time.monotonic() - began:.0f} s", flush=True)
    command = [sys.executable, "-m", "benchmarks.lmdeploy_kv", "--work", str(args.work), "--out", str(args.out)]
    logs = args.out.parent
    logs.mkdir(parents=True, exist_ok=True)
    children = []
    for name in SETTINGS:
        with (logs / f"{name}.log").open("w") as sink:
            children.append(
                subprocess.Popen([*command, "--child", name], cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT)
            )
    for process in children:
        process.wait()
    timed = args.work / "api-server.times.log"
    if timed.exists():
        (logs / timed.name).write_text(timed.read_text())
    results = []
    for name in SETTINGS:
        path = args.work / f"{name}.json"
        results.append(json.loads(path.read_text()) if path.exists() else {"setting": name, "failed": "no result"})
        row = results[-1]
        shown = row.get("failed") or f"{row['engine_tokens']:>9,} {row['error_percent']:+.2f} %"
        print(f"{name:14} planned {row.get('planned_tokens', 0):>9,}  engine {shown}", flush=True)
    gpu = replace(real, count=1)
    summary = {
        "gpu": gpu.name,
        "memory_gib": round(gpu.memory / GIB, 2),
        "driver": gpu.driver,
        "lmdeploy": version("lmdeploy"),
        "transformers": version("transformers"),
        "seconds": round(time.monotonic() - began),
        "settings": results,
    }
    args.out.write_text(json.dumps(summary, indent=1) + "\n")


def version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


WRITE_MODEL = """
import sys
from pathlib import Path
from benchmarks.finetune_gpu import write_model
write_model(Path(sys.argv[1]), "2B")
"""

if __name__ == "__main__":
    main()
