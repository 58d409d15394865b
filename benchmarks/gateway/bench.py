"""What the gateway adds to a request, measured from outside against a fake engine that costs next to nothing.

    python -m benchmarks.gateway.bench [--seconds 2] [--rounds 7] [--against CHECKOUT] [--json FILE]

Direct, the gateway with every check on, and three bare pass-throughs take turns in one run, so that a busy machine
disturbs them alike; `--against` adds the gateway of another checkout. Figures are medians of the rounds, ratios are
medians of each round's. The load comes from this process over raw sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import psutil

from modelfiles.hardware.python_child import free_port

HERE = Path(__file__).parent
STREAM_TOKENS = 20_000
CONCURRENT = 16
STREAMS = 3  # one after the other, for a figure of CPU time a chunk


def picture(size: int) -> str:
    """A data: URI of a JPEG of about `size` bytes."""
    from PIL import Image

    noise = Image.effect_noise((400, 400), 90).convert("RGB")
    file = io.BytesIO()
    noise.save(file, "JPEG", quality=60)
    data = file.getvalue()
    comment = b"\xff\xfe" + (min(65_000, max(4, size - len(data)))).to_bytes(2, "big")
    comment += b"x" * (int.from_bytes(comment[2:], "big") - 2)
    data = data[:2] + comment + data[2:]
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def request(stream: bool = False, max_tokens: int = 16, image: str | None = None) -> bytes:
    content: list[dict[str, object]] = [{"type": "text", "text": "What is this?"}]
    if image:
        content.append({"type": "image_url", "image_url": {"url": image}})
    fields = {"model": "bench", "max_tokens": max_tokens, "stream": stream}
    body = json.dumps({**fields, "messages": [{"role": "user", "content": content}]}, separators=(",", ":")).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def read_answer(connection: socket.socket) -> bytes:
    """One whole answer with a content-length or in chunks."""
    data = b""
    while True:
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            lower = data[:head].lower()
            at = lower.find(b"content-length: ")
            if at >= 0:
                length = int(lower[at + 16 :].split(b"\r\n")[0])
                if len(data) >= head + 4 + length:
                    break
            elif data.endswith(b"\r\n0\r\n\r\n"):
                break
        part = connection.recv(1 << 20)
        if not part:
            raise ConnectionError("closed")
        data += part
    assert b" 200 " in data[:20], data[:500]
    return data


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def one_at_a_time(port: int, sent: bytes, seconds: float) -> tuple[float, float]:
    """(p50, p99) in milliseconds."""
    times = []
    with connect(port) as connection:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            connection.sendall(sent)
            read_answer(connection)
            times.append(time.perf_counter() - start)
    times = times[len(times) // 10 :]
    return median(times) * 1000, quantiles(times, n=100)[98] * 1000


def first_token(port: int, seconds: float) -> float:
    """Median milliseconds to a stream's first event, on a connection used again."""
    times, sent = [], request(stream=True, max_tokens=1)
    with connect(port) as connection:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            connection.sendall(sent)
            data = connection.recv(1 << 20)
            while b"data:" not in data:
                data += connection.recv(1 << 20)
            times.append(time.perf_counter() - start)
            while not data.endswith(b"\r\n0\r\n\r\n"):
                data += connection.recv(1 << 20)
    return median(times[len(times) // 10 :]) * 1000


def chunks_per_second(port: int) -> float:
    """Chunks a second of one unpaced stream."""
    with connect(port) as connection:
        start = time.perf_counter()
        connection.sendall(request(stream=True, max_tokens=STREAM_TOKENS))
        count, tail = 0, b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            data = connection.recv(1 << 20)
            count += data.count(b"data: ")
            tail = (tail + data)[-7:]
        assert count > STREAM_TOKENS * 0.99, count
        return count / (time.perf_counter() - start)


async def many_at_a_time(port: int, sent: bytes, seconds: float, connections: int = CONCURRENT) -> float:
    """Requests a second over so many connections."""
    done = 0
    end = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head[:20], head
            lower = head.lower()
            at = lower.find(b"content-length: ")
            if at >= 0:
                await reader.readexactly(int(lower[at + 16 :].split(b"\r\n")[0]))
            else:
                await reader.readuntil(b"\r\n0\r\n\r\n")
            done += 1
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(connections)))
    return done / (time.perf_counter() - start)


@contextlib.contextmanager
def started(*argv: str, port: int, checkout: Path | None = None) -> Iterator[psutil.Process]:
    """A Python process that listens at `port`. `checkout`: where its modules come from, if not from here."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)} if checkout else None
    process = subprocess.Popen(
        [sys.executable, *argv], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=checkout, env=environment
    )
    try:
        for _ in range(1200):  # a cold start takes longer on a slow host than on a warm one
            with contextlib.suppress(OSError), connect(port):
                break
            if process.poll() is not None:
                raise RuntimeError(f"{argv} ended with code {process.returncode}")
            time.sleep(0.05)
        else:
            raise RuntimeError(f"{argv} does not listen after a minute")
        time.sleep(0.5)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def measure(port: int, process: psutil.Process, seconds: float, image: str) -> dict[str, float]:
    row: dict[str, float] = {}
    for kind, sent in (("text", request()), ("image", request(image=image))):
        row[f"{kind}_p50_ms"], row[f"{kind}_p99_ms"] = one_at_a_time(port, sent, seconds)
        before = cpu_seconds(process)
        rate = asyncio.run(many_at_a_time(port, sent, seconds))
        row[f"{kind}_requests_per_s"] = rate
        row[f"{kind}_cpu_us"] = (cpu_seconds(process) - before) / (rate * seconds) * 1e6
    row["first_token_ms"] = first_token(port, seconds / 2)
    before = cpu_seconds(process)
    row["chunks_per_s"] = median(chunks_per_second(port) for _ in range(STREAMS))
    row["chunk_cpu_us"] = (cpu_seconds(process) - before) / (STREAMS * STREAM_TOKENS) * 1e6
    row["mb"] = process.memory_info().rss / 1e6
    return row


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


Rounds = dict[str, dict[str, list[float]]]  # by server and figure
ADDED = ("text_p50_ms", "image_p50_ms", "image_p99_ms", "first_token_ms")  # without what it takes directly
COLUMNS = {
    "text_p50_ms": "added p50 ms, text",
    "image_p50_ms": "100 KB image",
    "image_p99_ms": "p99, image",
    "first_token_ms": "first token",
    "text_requests_per_s": "req/s, 16 at a time, text",
    "image_requests_per_s": "image",
    "text_cpu_us": "CPU µs/req, text",
    "image_cpu_us": "image",
    "chunk_cpu_us": "CPU µs a chunk",
    "mb": "memory MB",
}


def added(rounds: Rounds, server: str, figure: str) -> list[float]:
    """A figure of every round, of ADDED ones without what it takes directly."""
    if figure not in ADDED or server == "direct":
        return rounds[server][figure]
    return [here - direct for here, direct in zip(rounds[server][figure], rounds["direct"][figure], strict=True)]


def table(rounds: Rounds) -> Iterator[str]:
    yield f"| | {' | '.join(COLUMNS.values())} |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for server in rounds:
        figures = [median(added(rounds, server, figure)) for figure in COLUMNS]
        cells = [f"{figure:,.0f}" if figure >= 10 else f"{figure:.2f}" for figure in figures]
        yield f"| {server} | {' | '.join(cells)} |"
    for other in ("before", "aiohttp"):
        if other in rounds and "gateway" in rounds:
            cells = []
            for figure in COLUMNS:
                pairs = zip(added(rounds, "gateway", figure), added(rounds, other, figure), strict=True)
                cells.append(f"{median(here / there for here, there in pairs if there):.2f}")
            yield f"| gateway / {other} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds a figure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=["gateway", "aiohttp", "httpx", "httpx2"])
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout's gateway: the row before")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    image = picture(100_000)
    names = ["direct", *(["before"] if given.against else []), *given.only]
    ports = {name: free_port() for name in names}
    engine = f"http://127.0.0.1:{ports['direct']}"
    rounds: Rounds = {name: {} for name in ports}
    with contextlib.ExitStack() as stack:
        upstream = started(str(HERE / "upstream.py"), str(ports["direct"]), port=ports["direct"])
        processes = {"direct": stack.enter_context(upstream)}
        for name in names[1:]:
            port = str(ports[name])
            checkout = given.against.resolve() if name == "before" else None
            if name in ("gateway", "before"):
                argv = ["-c", "import lensmith; lensmith.main()", "serve", "--engine", engine, "--port", port]
            else:
                argv = [str(HERE / "passthrough.py"), name, engine, port]
            processes[name] = stack.enter_context(started(*argv, port=ports[name], checkout=checkout))
        for number in range(given.rounds + 1):
            for name, process in processes.items():
                row = measure(ports[name], process, given.seconds if number else 0.3, image)
                for figure, value in row.items():
                    if number:  # the first round warms up
                        rounds[name].setdefault(figure, []).append(value)
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, body of {len(image):,} bytes, medians of {given.rounds} rounds of {given.seconds:g} s\n")
    print("\n".join(table(rounds)))
    if given.json:
        given.json.write_text(json.dumps({"cores": cores, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
