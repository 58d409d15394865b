"""What several gateway processes give: requests/s and CPU time of `--workers 1` and of more, in turns.

    python -m benchmarks.gateway.workers [--workers 1 2] [--rounds 5] [--seconds 3] [--json FILE]

A 100 KB JPEG in each request, a fake engine that answers at once, 32 requests at a time from this process. Needs a core
for each gateway process and two more, for the load and the engine: on fewer they take them from each other, and the
CPU time of a request is what is left to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
from pathlib import Path
from statistics import median

import psutil

from benchmarks.gateway.bench import HERE, many_at_a_time, one_at_a_time, picture, request, started
from modelfiles.hardware.python_child import free_port


def cpu_seconds(parent: psutil.Process) -> float:
    """Of a gateway and of its workers."""
    times = [process.cpu_times() for process in (parent, *parent.children())]
    return sum(one.user + one.system for one in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds a figure")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sent = request(image=picture(100_000))
    upstream = free_port()
    figures = ("requests_per_s", "p50_ms", "cpu_ms")
    rows: dict[int, dict[str, list[float]]] = {n: {figure: [] for figure in figures} for n in given.workers}
    with contextlib.ExitStack() as stack:
        stack.enter_context(started(str(HERE / "upstream.py"), str(upstream), port=upstream))
        gateways = {}
        for workers in given.workers:
            port = free_port()
            argv = ["-c", "import lensmith; lensmith.main()", "serve", "--engine", f"http://127.0.0.1:{upstream}"]
            argv += ["--port", str(port), "--workers", str(workers)]
            gateways[workers] = port, stack.enter_context(started(*argv, port=port))
        for port, _ in gateways.values():
            one_at_a_time(port, sent, 2.0)  # until all workers are there
        for _ in range(given.rounds):
            for workers, (port, process) in gateways.items():
                before = cpu_seconds(process)
                rate = asyncio.run(many_at_a_time(port, sent, given.seconds, 32))
                rows[workers]["requests_per_s"].append(rate)
                rows[workers]["cpu_ms"].append((cpu_seconds(process) - before) / (rate * given.seconds) * 1000)
                rows[workers]["p50_ms"].append(one_at_a_time(port, sent, given.seconds / 3)[0])
    first = rows[given.workers[0]]
    print(f"{len(os.sched_getaffinity(0))} cores, medians of {given.rounds} rounds of {given.seconds:g} s\n")
    print("| workers | req/s, 32 at a time | times the first | CPU ms/req, all processes | p50 ms, one at a time |")
    print("|---|---|---|---|---|")
    for workers, row in rows.items():
        turns = zip(row["requests_per_s"], first["requests_per_s"], strict=True)
        ratio = median(mine / theirs for mine, theirs in turns)
        cells = [f"{median(row['requests_per_s']):,.0f}", f"{ratio:.2f}"]
        cells += [f"{median(row['cpu_ms']):.2f}", f"{median(row['p50_ms']):.2f}"]
        print(f"| {workers} | {' | '.join(cells)} |")
    if given.json:
        given.json.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
