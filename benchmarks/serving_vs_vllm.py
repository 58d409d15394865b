"""vLLM and Lensmith on one GPU, side by side: all servers are started at once, then asked the same pictures in turns.

    python -m benchmarks.serving_vs_vllm --model DIR --out FILE [--before CHECKOUT] [--vllm-path SITE] [--off LEVERS]
    python -m benchmarks.serving_vs_vllm --model DIR --out FILE --vllm-url URL ...

Sides: vllm (started here, or running already at a local URL), before (another checkout of Lensmith, if given; in the
first turn only), after (this one), off (this one without the levers that are named, as in
LENSMITH_LMDEPLOY_LEVERS_OFF), and with --two this one with two engines on the card. Every picture of a turn is new and
goes to each side once. Medians of the turns' requests/s are in the result's `rows`; every figure is in `turns`. While
vLLM starts, which takes longest, the answers of Lensmith's sides are compared, and memory is watched under load. What
cannot be done in `--seconds` (400) is left out. --quick with --engine transformers rehearses it without a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import psutil

from benchmarks.servers import Endpoint, Running, Server, engines_behind, get
from gateway.bench.client import RequestRecord, ask
from gateway.bench.figures import figures
from gateway.bench.load import LevelResult, LoadLevel
from gateway.bench.request_set import RequestSet
from gateway.engines.startup.levers import OFF
from modelfiles.hardware.python_child import free_port

LOADERS = 6  # processes
WARM = 16  # requests before a load that are not counted, at most
PICTURES = 5000  # under which memory is watched
BLOCKS = 2200  # of 64 tokens in the cache of each side: room for all sides on one card
VLLM_CACHE = 15 * 2**30  # bytes, the same number of tokens


class Load(NamedTuple):
    size: str
    at_once: int
    requests: int
    images: int = 1
    tokens: int = 32

    @property
    def name(self) -> str:
        shape = "" if (self.images, self.tokens) == (1, 32) else f", {self.images} images, {self.tokens} tokens"
        return f"{self.size}, {self.at_once}{shape}"

    @property
    def warm(self) -> int:
        """Requests before it that are not counted."""
        return min(self.at_once, WARM if self.tokens == 32 else 2)

    def request_set(self) -> RequestSet:
        width, height = map(int, self.size.split("x"))
        extra = {} if self in QUICK else {"ignore_eos": True}  # the engine of a rehearsal does not know it
        return RequestSet(
            "bench", "What is it?", self.tokens, images=self.images, image_size=(width, height), extra=extra
        )


TURN = (
    Load("224x224", 64, 320),
    Load("768x768", 64, 192),
    Load("4000x3000", 64, 64),
    Load("768x768", 1, 24),
    Load("768x768", 4, 64),
)
SHAPES = (Load("768x768", 16, 32, images=8), Load("768x768", 64, 64, tokens=1000))
QUICK = (Load("64x64", 4, 8), Load("96x96", 1, 2))


def loader(pipe: Connection) -> None:
    """A process that makes bodies and sends them: asked with (seed, level, request set), then (URL, ...) any time."""
    kept: dict[str, tuple[LoadLevel, list[bytes]]] = {}
    while True:
        try:
            order, name, *rest = pipe.recv()
        except EOFError:  # the benchmark is over
            return
        if order == "make":
            level, requests = rest
            kept[name] = level, [requests.body(level.seed + n) for n in range(level.requests + level.warmup)]
            pipe.send(len(kept[name][1]))
        elif order == "run":
            pipe.send(asyncio.run(run(*kept[name], *rest)))
        else:
            kept.pop(name, None)


async def run(level: LoadLevel, bodies: list[bytes], url: str, begin: float) -> list[RequestRecord]:
    """The warm-up, and after `begin` seconds by the monotonic clock, or when that is over, the requests that count."""
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        if begin == 0:
            warm = bodies[level.requests :]
            return list(await asyncio.gather(*(ask(session, url, body, time.monotonic()) for body in warm)))
        waiting = iter(bodies[: level.requests])
        records: list[RequestRecord] = []

        async def lane() -> None:
            for body in waiting:
                records.append(await ask(session, url, body, time.monotonic()))

        await asyncio.sleep(begin - time.monotonic())
        await asyncio.gather(*(lane() for _ in range(level.concurrency)))
        return records


class Loaders:
    """The load processes. Bodies of a load are made once and sent to every side."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        for _ in range(LOADERS):
            ours, theirs = context.Pipe()
            context.Process(target=loader, args=(theirs,), daemon=True).start()
            self.pipes.append(ours)

    def make(self, name: str, load: Load, seed: int) -> None:
        """Begin to make bodies; `wait` for them."""
        pipes = self._pipes(load)
        for index, pipe in enumerate(pipes):
            level = LoadLevel(load.requests, load.warm, load.at_once, seed=seed).share(index, len(pipes))
            pipe.send(("make", name, level, load.request_set()))

    def wait(self, load: Load) -> None:
        for pipe in self._pipes(load):
            pipe.recv()

    def measure(self, name: str, load: Load, url: str) -> dict[str, Any]:
        pipes = self._pipes(load)
        for begin in (0.0, time.monotonic() + 0.05):
            start = begin and time.monotonic() + 0.05
            for pipe in pipes:
                pipe.send(("run", name, url + "/v1/chat/completions", start))
            records = [record for pipe in pipes for record in pipe.recv()]
        level = LoadLevel(load.requests, load.at_once, load.at_once)
        return figures(level, LevelResult(sorted(records, key=lambda r: r.start), 0.0, load.requests), {})

    def _pipes(self, load: Load) -> list[Connection]:
        return self.pipes[: max(1, min(LOADERS, load.at_once // 8))]


def start(given: argparse.Namespace, work: Path) -> dict[str, Running]:
    """All sides, not waited for."""
    python, model = sys.executable, str(given.model)
    sides: dict[str, Running] = {}
    here = Path(__file__).resolve().parents[1]
    if given.vllm_url:
        sides["vllm"] = Running(given.vllm_url, "/health")
    elif given.vllm_path:
        port = free_port()
        argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "bench"]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "8192"]
        argv += ["--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", str(VLLM_CACHE)]
        sides["vllm"] = Server(argv, port, "/health", work / "vllm.log", PYTHONPATH=given.vllm_path)
    trees = {
        "before": given.before,
        "after": here,
        "off": here if given.off else None,
        "two": here if given.two else None,
    }
    for side, tree in trees.items():
        if tree is None:
            continue
        engines = 2 if side == "two" else 1
        args = {"num-gpu-blocks": BLOCKS // engines} if given.engine == "lmdeploy" else {}
        replica: dict[str, Any] = {"folder": model, "engine": given.engine, "engine_args": args}
        replica |= {"gpus": [0]} if given.engine == "lmdeploy" else {}
        port = free_port()
        config = work / f"{side}.yaml"  # JSON is YAML
        config.write_text(json.dumps({"port": port, "models": {"bench": {"replicas": [replica] * engines}}}))
        argv = ["env", "-C", str(tree), python, "-m", "lensmith", "serve", "--config", str(config)]
        path = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
        levers = {OFF: given.off} if side == "off" else {}
        sides[side] = Server(argv, port, "/ready", work / f"{side}.log", PYTHONPATH=path, **levers)
    return sides


def processes(server: Running) -> list[psutil.Process]:
    parent = psutil.Process(server.pid)
    return [parent, *parent.children(recursive=True)]


def idle_cores(server: Running, seconds: float = 2.0) -> float:
    """Cores that a side uses while nobody asks it."""
    children = processes(server)
    before = sum(sum(child.cpu_times()[:2]) for child in children)
    time.sleep(seconds)
    return round((sum(sum(child.cpu_times()[:2]) for child in children) - before) / seconds, 3)


def memory(server: Running) -> list[int]:
    """Resident MiB of a side's three largest processes."""
    return sorted((child.memory_info().rss >> 20 for child in processes(server)), reverse=True)[:3]


async def answers(url: str, count: int) -> list[str]:
    """Greedy answers to the same pictures, one after the other."""
    requests = RequestSet("bench", "What is it?", 32, stream=False, images=1, image_size=(448, 336))
    texts = []
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for number in range(count):
            async with session.post(url + "/v1/chat/completions", data=requests.body(77_000_000 + number)) as answer:
                texts.append((await answer.json())["choices"][0]["message"]["content"])
    return texts


class Comparison:
    """The result, written after every figure."""

    def __init__(self, given: argparse.Namespace, sides: dict[str, Endpoint]) -> None:
        self.given, self.sides, self.loaders = given, sides, Loaders()
        self.began = time.monotonic()
        self.result: dict[str, Any] = {"card": card(), "host": host(), "rows": [], "turns": [], "notes": {}}

    @property
    def left(self) -> float:
        return float(self.given.seconds) - (time.monotonic() - self.began)

    def note(self, name: str, value: object) -> None:
        self.result["notes"][name] = value
        print(f"[{self.given.seconds - self.left:.0f} s] {name}: {value}", flush=True)
        self.write()

    def turn(self, number: int, loads: tuple[Load, ...]) -> None:
        order = [side for side in self.sides.items() if number == 0 or side[0] != "before"]
        for load in loads:
            order = order[1:] + order[:1]  # no side is always first
            for side, endpoint in order:
                if self.left < 15:
                    continue
                row = self.loaders.measure(f"{number} {load.name}", load, endpoint.url)
                self.result["turns"].append({"turn": number, "load": load.name, "side": side, **row})
                ttft, e2e = row["ttft_ms"] or {}, row["e2e_ms"] or {}
                print(
                    f"[{self.given.seconds - self.left:.0f} s] {number} {load.name:24} {side:7} "
                    f"{row['requests_per_second']:8.2f} req/s  ttft p50 {ttft.get('p50')}  e2e p50 {e2e.get('p50')} "
                    f"p99 {e2e.get('p99')}  {row['errors'] or ''}",
                    flush=True,
                )
                self.write()

    def write(self) -> None:
        rates: dict[str, dict[str, list[float]]] = {}
        for row in self.result["turns"]:
            rates.setdefault(row["load"], {}).setdefault(row["side"], []).append(row["requests_per_second"])
        known = {load.name: load for load in (*TURN, *SHAPES, *QUICK)}
        self.result["rows"] = [
            {"size": known[name].size, "at_once": known[name].at_once}
            | {"images": known[name].images, "new_tokens": known[name].tokens}
            | {"lensmith" if side == "after" else side: median(of) for side, of in sides.items()}
            for name, sides in rates.items()
        ]
        self.given.out.write_text(json.dumps(self.result, indent=1) + "\n")


def card() -> str:
    ask_driver = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(ask_driver, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def host() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores, {model}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--vllm-path", help="PYTHONPATH that has vLLM")
    parser.add_argument("--vllm-url", help="where vLLM runs already, with its model named bench")
    parser.add_argument("--engine", default="lmdeploy")
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--meanwhile", help="shell command that finds the engine in LENSMITH_GPU_ENGINE and its key")
    parser.add_argument("--off", help="levers that are left out, between commas")
    parser.add_argument("--two", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    loads = QUICK if given.quick else TURN
    shapes = () if given.quick else SHAPES
    servers = start(given, given.out.parent)
    comparison = Comparison(given, {})
    plans = [(turn, load) for turn in range(given.turns) for load in loads] + [(9, load) for load in shapes]
    for seed, (turn, load) in enumerate(plans):
        comparison.loaders.make(f"{turn} {load.name}", load, 10_000_000 * (seed + 1))
    try:
        for side, server in sorted(servers.items(), key=lambda item: item[0] == "vllm"):
            if side == "vllm":
                for _, load in plans:
                    comparison.loaders.wait(load)
                while_waiting(comparison, servers, loads[0])
            try:
                comparison.note(f"{side} ready after seconds", round(server.wait_ready(), 1))
                comparison.sides[side] = server.endpoint
            except RuntimeError as error:
                comparison.note(f"{side} did not start", str(error)[-1500:])
        if "vllm" not in servers:
            for _, load in plans:
                comparison.loaders.wait(load)
        running = {side: servers[side] for side in comparison.sides}
        comparison.note("cores used when idle", {side: idle_cores(server) for side, server in running.items()})
        for turn in range(given.turns):
            comparison.turn(turn, loads)
        comparison.turn(9, shapes)
        comparison.note("resident MiB at last", {side: memory(server) for side, server in running.items()})
    finally:
        for server in servers.values():
            if isinstance(server, Server):
                server.process.kill()  # nobody waits for answers any more
            server.end()


def while_waiting(comparison: Comparison, servers: dict[str, Running], load: Load) -> None:
    """What needs no quiet machine: are answers the same before and after, and does memory grow under many pictures."""
    sides = [side for side in ("before", "after", "off") if side in comparison.sides]
    texts = [asyncio.run(answers(servers[side].endpoint.url, 12)) for side in (*sides, *sides[:1])]
    for other, name in zip(texts[1:], (*sides[1:], f"{sides[0]} again"), strict=True):
        same = sum(one == two for one, two in zip(texts[0], other, strict=True))
        comparison.note(f"greedy answers of {sides[0]} that are the same from {name}", f"{same} of {len(other)}")
    if "after" in sides and comparison.given.meanwhile:
        engine = engines_behind(servers["after"])[0].endpoint
        known = {**os.environ, "LENSMITH_GPU_ENGINE": engine.url, "LENSMITH_ENGINE_KEY": engine.key or ""}
        done = subprocess.run(comparison.given.meanwhile, shell=True, env=known, capture_output=True, text=True)
        comparison.note("meanwhile", done.stdout[-3000:] + done.stderr[-500:])
    if "after" not in sides or get(servers["vllm"].endpoint.url + "/health")[0] == 200:
        return
    comparison.loaders.make("memory", load, seed=900_000_000)
    comparison.loaders.wait(load)
    pictures, seen = 0, [memory(servers["after"])]
    while pictures < PICTURES and get(servers["vllm"].endpoint.url + "/health")[0] != 200:
        row = comparison.loaders.measure("memory", load, servers["after"].endpoint.url)
        pictures += row["ok"] + load.warm
        seen.append(memory(servers["after"]))
        comparison.note(f"resident MiB after {pictures} pictures of {load.size}", seen)


if __name__ == "__main__":
    main()
