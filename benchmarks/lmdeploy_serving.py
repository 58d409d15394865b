"""LMDeploy as its manual starts it, against LMDeploy as Lensmith starts it behind the gateway, in one run on one GPU.

    python -m benchmarks.lmdeploy_serving --work /tmp/serving --out result.json [--phases default,lensmith,…]

The model has Qwen3-VL-2B's shape and random weights; its processor shrinks images to 768 x 768 pixels, as training's
`image_max_pixels: 589824` does. 64 requests at once, 32 new tokens each, streamed, every picture different.

    default   `lmdeploy serve api_server MODEL --backend pytorch`, asked directly, with its default threads
    lensmith  `lensmith serve MODEL --engine lmdeploy`; with 768x768 pictures the gateway and its own engine, asked past
              the gateway, take turns
    few       one request at once and four, 768x768, 128 new tokens, through that gateway and past it, and `plain`:
              LMDeploy by itself with the same threads, on asyncio's event loop
    profile   where the time goes at 768x768: CPU by thread, GPU use, the engine's metrics, stacks by thread
    variants  768x768 past the gateway with other settings, one server after another; --variants chooses
    contract  the tests in tests/gpu, with --demo-model and with the 2B shape

Every result is written at once. --engine transformers --shape tiny --quick rehearses it without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.models import SHAPES
from benchmarks.servers import (
    ROOT,
    Endpoint,
    Server,
    Usage,
    engines_behind,
    get,
    load,
    read_load,
    start_load,
    versions,
)
from modelfiles.hardware.python_child import free_port

AT_ONCE = 64
TOKENS = 32
MAX_PIXELS = 768 * 768
# Pictures and how many requests a measurement has: five seconds or so at the rates seen.
SIZES = {"224x224": 384, "768x768": 256, "4000x3000": 160}
ROUNDS = 3
# What the project sets out to reach: requests/s through the gateway over LMDeploy's default, by picture.
BARS = {"224x224": 3.0, "768x768": 2.0, "4000x3000": 3.5}
GATEWAY_BAR = 0.97  # of the same engine asked directly, at 768x768
FOUR_BAR = 3.3  # throughput of four at once over one

# Settings of `lmdeploy serve api_server` to compare at 768x768: environment, options, and what else is different.
THREADS = {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
VARIANTS: dict[str, dict[str, Any]] = {
    "threads-2": {"environment": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}},
    "threads-4": {"environment": THREADS},
    "threads-8": {"environment": {"OMP_NUM_THREADS": "8", "MKL_NUM_THREADS": "8"}},
    # The processor's torch operations on the GPU: a key of preprocessor_config.json that transformers' processors take.
    "gpu-processor": {"environment": THREADS, "processor": {"device": "cuda"}},
    "two-engines": {"environment": THREADS, "options": ["--cache-max-entry-count", "0.35"], "engines": 2},
    "two-gpu-processor": {
        "environment": THREADS,
        "options": ["--cache-max-entry-count", "0.35"],
        "engines": 2,
        "processor": {"device": "cuda"},
    },
    "mp-executor": {"environment": THREADS, "options": ["--distributed-executor-backend", "mp"]},
    "prefix-caching": {"environment": THREADS, "options": ["--enable-prefix-caching"]},
}


class Run:
    """The benchmark's settings, what it found so far, and its work folder."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.seed = 0
        self.work: Path = given.work
        self.model = self.work / "model"
        self.result: dict[str, Any] = {"environment": versions(), "shape": given.shape, "at_once": self.at_once}
        if given.out.exists():  # phases of an earlier run on the same machine
            self.result = json.loads(given.out.read_text())

    @property
    def at_once(self) -> int:
        return 4 if self.given.quick else AT_ONCE

    def note(self, phase: str, name: str, value: Any) -> None:
        """Keep and write a result."""
        self.result.setdefault(phase, {})[name] = value
        self.given.out.write_text(json.dumps(self.result, indent=1) + "\n")
        print(f"{time.strftime('%X')} {phase} {name}: {json.dumps(value)[:400]}", flush=True)

    def load(
        self, endpoint: Endpoint, size: str, requests: int, at_once: int = 0, tokens: int = TOKENS
    ) -> dict[str, Any]:
        """One level of load; the level's figures."""
        return load(endpoint, *self.options(size, requests, at_once or self.at_once, tokens))[0]

    def options(self, size: str, requests: int, at_once: int, tokens: int = TOKENS) -> list[str]:
        """Options of `lensmith bench`. Other pictures every time: a seed is never used twice."""
        self.seed += 1
        if self.given.quick:
            requests, size = max(at_once, requests // 16), "200x150" if size == "4000x3000" else "64x64"
        options = ["--model", "bench", "--image-size", size, "--max-tokens", str(tokens), "--seed", str(self.seed)]
        options += ["--requests", str(requests), "--concurrency", str(at_once)]
        return options if self.given.engine == "transformers" else [*options, "--extra", '{"ignore_eos": true}']

    def start_default(self, folder: Path | None = None, *options: str, **variables: str) -> Server:
        """The engine by itself, as its manual says."""
        port, folder = free_port(), folder or self.model
        if self.given.engine == "transformers":
            argv = ["-m", "gateway.embedded", str(folder), "--port", str(port), "--served-model-name", "bench"]
        else:
            argv = ["-m", "lmdeploy", "serve", "api_server", str(folder), "--backend", "pytorch"]
            argv += ["--server-name", "127.0.0.1", "--server-port", str(port), "--model-name", "bench", *options]
        log = self.work / f"engine-{port}.log"
        return Server([sys.executable, *argv], port, "/health", log, **variables)

    def start_lensmith(self, **variables: str) -> Server:
        port = free_port()
        argv = [sys.executable, "-m", "lensmith", "serve", str(self.model), "--engine", self.given.engine]
        argv += ["--port", str(port), "--model-name", "bench", *shlex.split(self.given.serve_options)]
        return Server(argv, port, "/ready", self.work / f"lensmith-{port}.log", **variables)


def phase_default(run: Run) -> None:
    with run.start_default() as server:
        run.note("default", "ready_seconds", round(server.wait_ready(), 1))
        for size, requests in SIZES.items():
            with Usage(server.pid) as usage:
                figures = run.load(server.endpoint, size, requests)
            run.note("default", size, {**figures, "usage": usage.fields()})


def phase_lensmith(run: Run, gateway: Server) -> None:
    engine = engines_behind(gateway)[0].endpoint
    for size, requests in SIZES.items():
        with Usage(gateway.pid) as usage:
            run.note("lensmith", size, {**run.load(gateway.endpoint, size, requests), "usage": usage.fields()})
    through: list[dict[str, Any]] = []
    past: list[dict[str, Any]] = []
    for turn in range(ROUNDS):
        order: list[tuple[list[dict[str, Any]], Endpoint]] = [(through, gateway.endpoint), (past, engine)]
        for rows, endpoint in order if turn % 2 else reversed(order):
            rows.append(run.load(endpoint, "768x768", SIZES["768x768"]))
            run.note("lensmith", "turns_through_gateway" if rows is through else "turns_past_gateway", rows)


def phase_few(run: Run, gateway: Server) -> None:
    endpoints = {"gateway": gateway.endpoint, "engine": engines_behind(gateway)[0].endpoint}
    for turn in range(ROUNDS):
        few_at_once(run, endpoints, turn)


def phase_plain_few(run: Run) -> None:
    with run.start_default(None, **THREADS) as server:
        server.wait_ready()
        for turn in range(ROUNDS):
            few_at_once(run, {"plain": server.endpoint}, turn)


def few_at_once(run: Run, endpoints: dict[str, Endpoint], turn: int) -> None:
    for name, endpoint in endpoints.items():
        for at_once, requests in ((1, 16), (4, 64)):
            figures = run.load(endpoint, "768x768", requests, at_once, tokens=128)
            run.note("few", f"768x768-{name}-{at_once}-turn-{turn}", figures)


def phase_profile(run: Run) -> None:
    stacks = run.work / "stacks"
    stacks.mkdir(exist_ok=True)
    path = os.pathsep.join([str(ROOT / "benchmarks" / "stack_sampler"), os.environ.get("PYTHONPATH", "")])
    with run.start_lensmith(STACKS=str(stacks / "stacks"), PYTHONPATH=path) as gateway:
        gateway.wait_ready()
        engine = engines_behind(gateway)[0].endpoint
        run.load(engine, "768x768", SIZES["768x768"] // 2)
        time.sleep(2.5)  # the sampler writes every two seconds
        earlier = {file.name: read_stacks(file) for file in stacks.glob("stacks.[0-9]*")}
        before = get(engine.url + "/metrics", engine.key)[1]
        with Usage(gateway.pid) as usage:
            figures = run.load(engine, "768x768", SIZES["768x768"] * 2)
        run.note("profile", "load", {**figures, "usage": usage.fields()})
        run.note("profile", "metrics", means(before, get(engine.url + "/metrics", engine.key)[1]))
        time.sleep(2.5)
    for file in stacks.glob("stacks.failed.*"):
        shutil.copy(file, run.given.out.parent)
    for file in stacks.glob("stacks.[0-9]*"):
        counts = read_stacks(file)
        counts.subtract(earlier.get(file.name, {}))
        lines = [f"{count} {stack}\n" for stack, count in counts.most_common(200) if count > 0]
        (run.given.out.parent / f"{file.name}.txt").write_text("".join(lines))


def read_stacks(file: Path) -> Counter[str]:
    lines = [line.partition(" ") for line in file.read_text().split("\n") if line]
    return Counter({stack: int(count) for count, _, stack in lines})


def means(before: str, after: str) -> dict[str, float]:
    """What LMDeploy's histograms gained between two scrapes, as the mean of an observation."""

    def totals(text: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            if name.endswith(("_sum", "_count")):
                found[name] = found.get(name, 0.0) + float(value)
        return found

    old, new, result = totals(before), totals(after), {}
    for name in new:
        if name.endswith("_sum"):
            base = name.removesuffix("_sum")
            count = new.get(base + "_count", 0) - old.get(base + "_count", 0)
            if count:
                result[base] = round((new[name] - old.get(name, 0)) / count, 4)
    return result


def phase_variants(run: Run) -> None:
    for name in run.given.variants.split(","):
        variant = VARIANTS[name]
        folder = run.model
        if "processor" in variant:
            folder = changed_processor(run.model, run.work / name, variant["processor"])
        try:
            run.note("variants", name, measure_variant(run, folder, variant))
        except RuntimeError as error:
            run.note("variants", name, {"failed": str(error)})


def measure_variant(run: Run, folder: Path, variant: dict[str, Any]) -> dict[str, Any]:
    """The load at 768x768, shared evenly by the variant's engines, all on the one GPU."""
    with contextlib.ExitStack() as stack:
        servers = []
        for _ in range(variant.get("engines", 1)):  # started one after another: each sizes its cache by what is free
            server = run.start_default(folder, *variant.get("options", []), **variant["environment"])
            servers.append(stack.enter_context(server))
            server.wait_ready()
        at_once = run.at_once // len(servers)
        requests = 2 * SIZES["768x768"] // len(servers)
        runs: list[Any] = []
        with Usage(os.getpid()) as usage:
            for server in servers:
                report = run.work / f"load-{len(runs)}.json"
                options = run.options("768x768", requests, at_once)
                runs.append((start_load(server.endpoint, report, *options), report))
            rows = [read_load(process, report)[0] for process, report in runs]
        total = sum(row["requests_per_second"] for row in rows)
        return {"requests_per_second": round(total, 2), "ttft_ms": rows[0]["ttft_ms"], "usage": usage.fields()}


def changed_processor(model: Path, copy: Path, fields: dict[str, Any]) -> Path:
    """The model folder with other keys in preprocessor_config.json; every other file is a link."""
    copy.mkdir(exist_ok=True)
    for file in model.iterdir():
        (copy / file.name).unlink(missing_ok=True)
        (copy / file.name).symlink_to(file.resolve())
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    (copy / "preprocessor_config.json").write_text(json.dumps({**settings, **fields}))
    return copy


def phase_contract(run: Run) -> None:
    for name, folder in (("demo", run.given.demo_model), ("shape", run.model)):
        if folder is None:
            continue
        variables = {"LENSMITH_GPU_MODEL": str(folder.resolve()), "LENSMITH_GPU_ENGINE": run.given.engine}
        argv = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", "--no-header"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **variables})
        lines = done.stdout.strip().splitlines()
        (run.given.out.parent / f"contract-{name}.log").write_text(done.stdout + done.stderr)
        run.note("contract", name, {"exit_code": done.returncode, "said": lines[-1] if lines else done.stderr[-500:]})


def compare(result: dict[str, Any]) -> list[str]:
    """The report: a table and each bar with what was reached."""
    default, lensmith = result.get("default", {}), result.get("lensmith", {})
    lines = ["| pictures | LMDeploy's default | Lensmith | ratio | bar | TTFT p50, ms |", "|---|---|---|---|---|---|"]
    for size, bar in BARS.items():
        if size in default and size in lensmith:
            one, two = default[size], lensmith[size]
            rates = [row["requests_per_second"] for row in (one, two)]
            times = " -> ".join(f"{row['ttft_ms']['p50']:,.0f}" for row in (one, two))
            lines.append(
                f"| {size} | {rates[0]:.1f} req/s | {rates[1]:.1f} | {rates[1] / rates[0]:.2f}x | {bar}x | {times} |"
            )
    if "turns_past_gateway" in lensmith:
        through, past = lensmith["turns_through_gateway"], lensmith["turns_past_gateway"]
        rates = [median(row["requests_per_second"] for row in rows) for rows in (through, past)]
        medians = [median(row["ttft_ms"]["p50"] for row in rows) for rows in (through, past)]
        lines.append(
            f"Gateway against its own engine, 768x768: {rates[0]:.1f} and {rates[1]:.1f} req/s, "
            f"{rates[0] / rates[1]:.3f} (bar {GATEWAY_BAR}); TTFT p50 {medians[0]:,.0f} and {medians[1]:,.0f} ms"
        )
    few = result.get("few", {})
    for name in sorted({key.partition("-turn-")[0].removesuffix("-4") for key in few if "-4-turn-" in key}):
        rates = [
            median(row["tokens_per_second"] for key, row in few.items() if key.startswith(f"{name}-{at_once}-"))
            for at_once in (1, 4)
        ]
        lines.append(
            f"Four at once over one ({name}): {rates[1]:.0f} and {rates[0]:.0f} tok/s, "
            f"{rates[1] / rates[0]:.2f}x (bar {FOUR_BAR}x)"
        )
    for name, row in result.get("variants", {}).items():
        seen = row.get("failed") or f"{row['requests_per_second']:.1f} req/s, GPU {row['usage']['gpu_percent']} %"
        lines.append(f"variant {name}: {seen}")
    for name, row in result.get("contract", {}).items():
        lines.append(f"contract, {name} model: {row['said']}")
    return lines


def common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON; logs are written beside it")
    parser.add_argument("--engine", default="lmdeploy", choices=("lmdeploy", "transformers"))
    parser.add_argument("--shape", choices=SHAPES, default="2B")
    parser.add_argument("--quick", action="store_true", help="few requests and small pictures")


def prepare(given: argparse.Namespace) -> Run:
    """Folders and the model."""
    given.work.mkdir(parents=True, exist_ok=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name in THREADS:  # the default is what is measured against
        os.environ.pop(name, None)
    run = Run(given)
    if not (run.model / "model.safetensors").exists():
        # In a process of its own: this one must not hold GPU memory.
        code = f"from benchmarks.models import *; write_model(Path({str(run.model)!r}), {given.shape!r}, {MAX_PIXELS})"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        run.note("model", "pixels", MAX_PIXELS)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_options(parser)
    parser.add_argument("--phases", default="default,lensmith,few,profile,variants,contract")
    parser.add_argument(
        "--variants", default="threads-4,prefix-caching,gpu-processor,two-engines", help=", ".join(VARIANTS)
    )
    parser.add_argument("--serve-options", default="", help="more options of `lensmith serve`")
    parser.add_argument("--demo-model", type=Path, help="a model folder whose answers mean something")
    run = prepare(parser.parse_args())
    for phase, work in phases_of(run, run.given.phases.split(",")):
        try:
            work()
        except (RuntimeError, KeyError, OSError) as error:
            run.note(phase, "failed", repr(error)[:2000])
    print("\n".join(compare(run.result)), flush=True)
    for log in run.work.glob("*.log"):
        shutil.copy(log, run.given.out.parent)


def phases_of(run: Run, wanted: list[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each wanted phase in turn; `lensmith` and `few` share one server."""
    if "default" in wanted:
        yield "default", lambda: phase_default(run)
    if {"lensmith", "few"} & set(wanted):
        yield "lensmith", lambda: through_gateway(run, wanted)
    if "few" in wanted:
        yield "few", lambda: phase_plain_few(run)
    if "profile" in wanted:
        yield "profile", lambda: phase_profile(run)
    if "variants" in wanted:
        yield "variants", lambda: phase_variants(run)
    if "contract" in wanted:
        yield "contract", lambda: phase_contract(run)


def through_gateway(run: Run, wanted: list[str]) -> None:
    with run.start_lensmith() as gateway:
        run.note("lensmith", "ready_seconds", round(gateway.wait_ready(), 1))
        run.note("lensmith", "engine_command", " ".join(engines_behind(gateway)[0].command[1:]))
        if "lensmith" in wanted:
            phase_lensmith(run, gateway)
        if "few" in wanted:
            phase_few(run, gateway)


if __name__ == "__main__":
    main()
