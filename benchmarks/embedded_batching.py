"""Does batching pay in the embedded engine? Requests/s one at a time and eight at a time, from the real process.

    python benchmarks/embedded_batching.py [MODEL_DIR] [--questions 64] [--concurrency 8] [--max-tokens 32] [--rounds 3]

Starts `python -m gateway.embedded`, asks the same short questions in both ways, and prints requests/s, their ratio and
the batch sizes that the engine itself reports on /metrics. Rounds alternate: a noisy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ["red", "green", "blue", "orange", "purple", "brown", "pink", "teal"]


def picture(i: int) -> str:
    """A data URI of a circle and a square."""
    image = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, 45, 45), fill=COLOURS[i % 8])
    draw.rectangle((50, 50, 90, 90), fill=COLOURS[(i + 3) % 8])
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def texts(count: int) -> list[object]:
    return [f"Which is larger, the {COLOURS[i % 8]} circle or the square?" for i in range(count)]


def pictures(count: int) -> list[object]:
    question = {"type": "text", "text": "Describe the picture in detail."}
    return [[{"type": "image_url", "image_url": {"url": picture(i)}}, question] for i in range(count)]


async def ask(session: aiohttp.ClientSession, content: object, max_tokens: int) -> int:
    """Asks one question; returns the tokens of its answer."""
    message = {"role": "user", "content": content}
    body = {"model": "bench", "messages": [message], "max_tokens": max_tokens, "temperature": 0}
    async with session.post("/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        tokens: int = (await response.json())["usage"]["completion_tokens"]
        return tokens


async def measure(
    session: aiohttp.ClientSession, contents: list[object], concurrency: int, max_tokens: int
) -> tuple[float, float]:
    """(requests/s, mean tokens an answer) of `concurrency` clients that ask again as soon as they are answered."""
    todo = iter(contents)
    tokens: list[int] = []

    async def client() -> None:
        for content in todo:
            tokens.append(await ask(session, content, max_tokens))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return len(contents) / (time.perf_counter() - began), statistics.mean(tokens)


async def batches(session: aiohttp.ClientSession) -> dict[float, float]:
    """How many batches the engine ran of at most each size, from its histogram (cumulative)."""
    async with session.get("/metrics") as response:
        text = await response.text()
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "lensmith_engine_batch_size_bucket"
    }


def sizes(before: dict[float, float], after: dict[float, float]) -> str:
    """ "8: 12, 3: 1": how many batches of each size ran between two readings."""
    counts, below = [], 0.0
    for bound in sorted(after):
        total = after[bound] - before[bound]
        if total > below:
            counts.append(f"{bound:g}: {total - below:g}")
        below = total
    return ", ".join(reversed(counts))


async def compare(url: str, contents: list[object], options: argparse.Namespace) -> None:
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        await measure(session, contents[:16], options.concurrency, options.max_tokens)  # warm-up
        speeds: dict[int, list[float]] = {1: [], options.concurrency: []}
        for _ in range(options.rounds):
            for concurrency, measured in speeds.items():
                before = await batches(session)
                speed, tokens = await measure(session, contents, concurrency, options.max_tokens)
                measured.append(speed)
                seen = sizes(before, await batches(session))
                print(
                    f"  {concurrency} at a time: {speed:7.2f} requests/s, {tokens:.1f} tokens an answer, "
                    f"batch sizes {{{seen}}}",
                    flush=True,
                )
        one, many = (statistics.median(measured) for measured in speeds.values())
        print(f"  median: {one:.2f} -> {many:.2f} requests/s, {many / one:.2f}x", flush=True)


async def until_ready(url: str, process: subprocess.Popen[str]) -> None:
    async with aiohttp.ClientSession(url) as session:
        while process.poll() is None:
            async with session.get("/health") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.2)
    sys.exit("The engine did not start.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", nargs="?", default=str(ROOT / "examples" / "shapes-vl"))
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "gateway.embedded",
        options.model_dir,
        "--port",
        "0",
        "--served-model-name",
        "bench",
    ]
    command += ["--max-batch-size", str(options.concurrency)]
    print(
        f"{Path(options.model_dir).name}, {os.cpu_count()} cores: "
        f"{options.questions} questions, answers of at most {options.max_tokens} tokens"
    )
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            asyncio.run(until_ready(url, process))
            for name, contents in (("text", texts(options.questions)), ("a picture each", pictures(options.questions))):
                print(name)
                asyncio.run(compare(url, contents, options))
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
