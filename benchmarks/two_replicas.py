"""Two GPUs: two engines behind one gateway against one, and one of them killed in the middle.

    python -m benchmarks.two_replicas --work /tmp/serving --out result.json

The model is lmdeploy_serving's. 768x768 pictures, 32 new tokens, streamed, 64 requests at once for each engine. Then
one engine is killed (SIGKILL) while requests run: those whose text had not begun must all be answered, and the engine
must come back by itself. --engine transformers --shape tiny --quick rehearses it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from statistics import median
from typing import Any

from benchmarks.lmdeploy_serving import Run, common_options, prepare
from benchmarks.servers import Server, descendants, engines_behind, get, read_load, start_load
from modelfiles.hardware.python_child import free_port

BAR = 1.9
REQUESTS = 512  # for each engine
ROUNDS = 3
KILL_AFTER = 0.35  # of the time that the same load took before


def serve(run: Run, replicas: int) -> Server:
    """`lensmith serve --config` with one engine a GPU."""
    described = [
        {"folder": str(run.model), "engine": run.given.engine}
        | ({"gpus": [gpu]} if run.given.engine == "lmdeploy" else {})
        for gpu in range(replicas)
    ]
    port = free_port()
    config = run.work / f"replicas-{replicas}.yaml"  # JSON is YAML
    config.write_text(json.dumps({"port": port, "models": {"bench": {"replicas": described}}}))
    argv = [sys.executable, "-m", "lensmith", "serve", "--config", str(config)]
    return Server(argv, port, "/ready", run.work / f"replicas-{replicas}.log")


def ready_engines(gateway: Server) -> int:
    """How many engines the gateway's metrics call up."""
    lines = get(gateway.endpoint.url + "/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) == 1 for line in lines if line.startswith("lensmith_engine_up"))


def wait_engines(gateway: Server, count: int, seconds: float = 300) -> float:
    """Seconds until so many are up. Raises RuntimeError."""
    began = time.monotonic()
    while ready_engines(gateway) < count:
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"{ready_engines(gateway)} of {count} engines are up after {seconds:g} s")
        time.sleep(0.2)
    return time.monotonic() - began


def rate(run: Run, gateway: Server, at_once: int, requests: int) -> dict[str, Any]:
    return run.load(gateway.endpoint, "768x768", requests, at_once)


def kill_one(run: Run, gateway: Server, before: dict[str, Any]) -> None:
    """Kill an engine and all its processes while a load runs that is as large as the one `before`."""
    report = run.work / "kill.json"
    victim = engines_behind(gateway)[0].pid
    process = start_load(gateway.endpoint, report, *run.options("768x768", 2 * REQUESTS, 2 * run.at_once))
    while requests_running(gateway) < run.at_once // 2:  # bodies are being made
        time.sleep(0.05)
    time.sleep(before["seconds"] * KILL_AFTER)
    killed = time.monotonic()
    running = requests_running(gateway)
    for pid in reversed(descendants(victim)):
        os.kill(pid, signal.SIGKILL)
    figures = read_load(process, report)[0]
    run.note("kill", "load", {**figures, "running_when_killed": running})
    wait_engines(gateway, 2)
    run.note("kill", "back_after_seconds", round(time.monotonic() - killed, 1))
    run.note("kill", "after", rate(run, gateway, 2 * run.at_once, 2 * REQUESTS))


def requests_running(gateway: Server) -> float:
    lines = get(gateway.endpoint.url + "/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("lensmith_requests_running"))


def report(result: dict[str, Any]) -> list[str]:
    one, two = (
        max(median(row["requests_per_second"] for row in rows) for rows in result[name].values())
        for name in ("one", "two")
    )
    lines = [f"Two engines over one: {two:.1f} and {one:.1f} req/s, {two / one:.2f}x (bar {BAR}x)"]
    kill = result.get("kill", {})
    if "after" in kill:
        load = kill["load"]
        failed = sum(load["errors"].values())
        lines.append(
            f"One killed with {load['running_when_killed']:.0f} requests running: {load['ok']} of {load['requests']} "
            f"answered, {failed - load['failed_before_text']} broken off after their text had begun, "
            f"{load['failed_before_text']} before (bar 0); back after {kill['back_after_seconds']} s, "
            f"then {kill['after']['requests_per_second']:.1f} req/s"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_options(parser)
    run = prepare(parser.parse_args())
    with serve(run, 1) as gateway:
        run.note("start", "one", round(gateway.wait_ready(), 1))
        # One engine may have its best at either load.
        for at_once in (run.at_once, 2 * run.at_once):
            rows = [rate(run, gateway, at_once, REQUESTS) for _ in range(ROUNDS)]
            run.note("one", str(at_once), rows)
    with serve(run, 2) as gateway:
        gateway.wait_ready()
        wait_engines(gateway, 2)
        run.note("start", "two", round(time.monotonic() - gateway.started, 1))
        rows = [rate(run, gateway, 2 * run.at_once, 2 * REQUESTS) for _ in range(ROUNDS)]
        run.note("two", str(2 * run.at_once), rows)
        kill_one(run, gateway, rows[-1])
    print("\n".join(report(run.result)), flush=True)


if __name__ == "__main__":
    main()
