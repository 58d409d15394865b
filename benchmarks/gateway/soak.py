"""Is anything left behind? More clients than fit, a fifth of whom go in the middle, then a look at what remains.

    python -m benchmarks.gateway.soak [--seconds 600] [--clients 64]

Fails if a place at the engine or in the queue, a file descriptor or a process is still taken at the end, or if memory
still grew in the second half of a run that is long enough to tell: a minute or more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import sys
import time

import aiohttp
import psutil

from benchmarks.gateway.bench import HERE, picture, started
from modelfiles.hardware.python_child import free_port

IDLE = 9.0  # seconds; idle connections to the engine are kept for 4, and looked for as often
SPARE = 8  # file descriptors: of an image worker more, and the connections that ask for metrics and health
LONG = 60.0  # seconds after which memory must not grow any more
GOING = 0.2  # share of clients that go before they have their answer


async def client(url: str, bodies: list[dict[str, object]], end: float, counts: dict[str, int]) -> None:
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < end:
            body = random.choice(bodies)
            timeout = aiohttp.ClientTimeout(total=random.uniform(0, 0.02) if random.random() < GOING else 60)
            try:
                async with session.post(url, json=body, timeout=timeout) as answer:
                    await answer.read()
                    outcome = str(answer.status)
            except (asyncio.TimeoutError, aiohttp.ClientError):
                outcome = "gone"
            counts[outcome] = counts.get(outcome, 0) + 1


async def sample(process: psutil.Process, end: float) -> list[float]:
    """Megabytes of memory, once a second."""
    memory = []
    while time.monotonic() < end:
        memory.append(process.memory_info().rss / 1e6)
        await asyncio.sleep(1)
    return memory


def gauge(metrics: str, name: str) -> float:
    """The sum of a gauge over its labels. It must be there."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.M)
    assert found, f"no metric {name}"
    return sum(map(float, found))


async def soak(port: int, process: psutil.Process, seconds: float, clients: int) -> list[str]:
    """The problems found."""
    url = f"http://127.0.0.1:{port}"
    image = {"type": "image_url", "image_url": {"url": picture(100_000)}}
    text = {"type": "text", "text": "?"}
    bodies: list[dict[str, object]] = [
        {"model": "bench", "messages": [{"role": "user", "content": [text, image]}]},
        {"model": "bench", "messages": [{"role": "user", "content": [text, image]}], "stream": True, "max_tokens": 200},
        {"model": "bench", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 20_000},
        {"model": "bench", "messages": [{"role": "user", "content": [{**image, "image_url": {"url": "data:,"}}]}]},
        {"model": "none", "messages": [{"role": "user", "content": "hi"}]},
    ]
    counts: dict[str, int] = {}
    # Every image worker has been started and every connection to the engine closed before we count.
    await asyncio.gather(*(client(url + "/v1/chat/completions", bodies, time.monotonic() + 5, {}) for _ in range(8)))
    await asyncio.sleep(IDLE)
    before, children, end = process.num_fds(), len(process.children()), time.monotonic() + seconds
    work = asyncio.gather(*(client(url + "/v1/chat/completions", bodies, end, counts) for _ in range(clients)))
    memory = await sample(process, end)
    await work
    await asyncio.sleep(IDLE)
    async with aiohttp.ClientSession() as session, session.get(url + "/metrics") as answer:
        metrics = await answer.text()
    left = {name: gauge(metrics, f"lensmith_requests_{name}") for name in ("running", "waiting")}
    half = memory[len(memory) // 2 :]
    quarter = len(half) // 2
    growth = sum(half[quarter:]) / len(half[quarter:]) - sum(half[:quarter]) / len(half[:quarter])
    descriptors = process.num_fds() - before
    print(f"{sum(counts.values()):,} requests: {dict(sorted(counts.items()))}")
    print(f"memory {memory[0]:.0f} MB at first, {max(memory):.0f} at most, {growth:+.1f} in the second half")
    print(f"left: {left}, file descriptors {descriptors:+d}")
    problems = [f"{name} is {value:g}" for name, value in left.items() if value]
    if descriptors > SPARE:
        problems.append(f"{descriptors} file descriptors more")
    if len(process.children()) > children:
        problems.append(f"{len(process.children()) - children} processes more")
    if growth > 5 and seconds >= LONG:
        problems.append(f"memory grew by {growth:.1f} MB")
    if not {"200", "400", "404", "503", "gone"} <= set(counts):
        problems.append("not every kind of answer was seen")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    given = parser.parse_args()
    engine_port, port = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(started(str(HERE / "upstream.py"), str(engine_port), port=engine_port))
        argv = ["-c", "import lensmith; lensmith.main()", "serve", "--engine", f"http://127.0.0.1:{engine_port}"]
        limits = ["--port", str(port), "--max-running", "4", "--max-waiting", "2", "--image-pixels", "100000"]
        process = stack.enter_context(started(*argv, *limits, port=port))
        problems = asyncio.run(soak(port, process, given.seconds, given.clients))
    sys.exit("; ".join(problems) or 0)


if __name__ == "__main__":
    main()
