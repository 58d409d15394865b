"""What images cost that must be decoded and shrunk: milliseconds a megapixel, and how it scales with worker processes.

    python -m benchmarks.gateway.images [--seconds 3] [--rounds 3] [--workers 1 2 4] [--json FILE]
    python -m benchmarks.gateway.images --against CHECKOUT [--turns 5] [--json FILE]

The gateway's own pool of worker processes, without HTTP around it: base64 in, base64 out. Pictures are drawn (soft
colours with grain, a photo's bytes a pixel) and shrunk to 1 megapixel, as for `--image-pixels 1048576`.
With `--against` this benchmark runs here and in another checkout in turns; the figures are medians of CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import PIL
import psutil
import uvloop
from PIL import Image

from benchmarks.gateway.bench import cpu_seconds
from gateway.media.checks import read_data_uri, write_data_uri
from gateway.media.headers import ImageHeader
from gateway.media.pixel_budget import PixelBudget
from gateway.media.pool import ImagePool

# What cameras and screens give, in pixels.
SIZES = {"2 MP": (1920, 1080), "12 MP": (4000, 3000), "48 MP": (8000, 6000)}
FORMATS = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 6}, "WEBP": {"quality": 85, "method": 2}}
MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
BUDGET = PixelBudget(factor=32, min_pixels=65_536, max_pixels=1_048_576)
MAX_PIXELS = 64_000_000


def picture(size: tuple[int, int]) -> Image.Image:
    """Soft colours over large areas and fine grain on top, of the same kind at every size."""
    width, height = size
    bands = []
    for channel in range(3):
        soft = Image.effect_noise((12 + channel, 9), 120).resize(size, Image.Resampling.BICUBIC)
        grain = Image.effect_noise((width // 2, height // 2), 12).resize(size, Image.Resampling.BILINEAR)
        bands.append(Image.blend(soft, grain, 0.3))
    return Image.merge("RGB", bands)


def encoded(image: Image.Image, format: str) -> str:
    """The picture's `data:` URI."""
    file = io.BytesIO()
    image.save(file, format, **FORMATS[format])
    return write_data_uri(MIME[format], file.getvalue())


async def through(pool: ImagePool, uri: str, size: tuple[int, int]) -> str:
    """What the gateway does with an image that is too large."""
    file = read_data_uri(uri)
    return write_data_uri(*await pool.convert(file.data, file.header, size))


async def rate(uri: str, header: ImageHeader, workers: int, seconds: float) -> dict[str, float]:
    """Images of one kind for some seconds, two waiting for each worker."""
    pool = ImagePool(workers, MAX_PIXELS, 60.0, max_waiting=2 * workers)
    size = BUDGET.target(header, None)
    assert size is not None
    try:
        await asyncio.gather(*(through(pool, uri, size) for _ in range(workers)))  # starts them
        children = psutil.Process().children()
        before = time.process_time(), sum(map(cpu_seconds, children))
        start = time.perf_counter()
        done = 0

        async def client() -> None:
            nonlocal done
            while time.perf_counter() < start + seconds:
                await through(pool, uri, size)
                done += 1

        await asyncio.gather(*(client() for _ in range(2 * workers)))
        duration = time.perf_counter() - start
        megapixels = header.pixels / 1e6 * done
        return {
            "images_per_s": done / duration,
            "megapixels_per_s": megapixels / duration,
            "worker_cpu_ms_per_megapixel": (sum(map(cpu_seconds, children)) - before[1]) / megapixels * 1000,
            "gateway_cpu_ms_per_image": (time.process_time() - before[0]) / done * 1000,
        }
    finally:
        await pool.close()


# The benchmark of either checkout, without 48 MP: those take minutes a turn.
SOME_KINDS = """
import sys, uvloop
sys.path.insert(0, "benchmarks/gateway")
import images
del images.SIZES["48 MP"]
uvloop.run(images.main())
"""


def compare(other: Path, turns: int, seconds: float) -> dict[str, dict[str, float]]:
    """CPU milliseconds an image, workers and gateway together, of another checkout and of this, by kind of image."""
    checkouts = {"before": other.resolve(), "after": Path(__file__).parents[2]}
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for name, checkout in checkouts.items():
                file = Path(folder) / f"{name}{turn}.json"
                argv = [sys.executable, "-c", SOME_KINDS, "--rounds", "1", "--workers", "1"]
                argv += ["--seconds", str(seconds), "--json", str(file)]
                environment = {**os.environ, "PYTHONPATH": str(checkout)}
                subprocess.run(argv, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)
                for kind, row in json.loads(file.read_text())["one worker"].items():
                    width, height = SIZES[kind.split(" ", 1)[1]]
                    worker = row["worker_cpu_ms_per_megapixel"] * width * height / 1e6
                    found.setdefault(kind, {"before": [], "after": []})
                    found[kind][name].append(worker + row["gateway_cpu_ms_per_image"])
    medians = {kind: {name: statistics.median(all_) for name, all_ in row.items()} for kind, row in found.items()}
    return {kind: {**row, "times_faster": row["before"] / row["after"]} for kind, row in medians.items()}


def better(old: dict[str, float] | None, new: dict[str, float]) -> dict[str, float]:
    """The faster of two rounds: what disturbed the other is not ours."""
    return new if old is None or new["images_per_s"] > old["images_per_s"] else old


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds a figure")
    parser.add_argument("--rounds", type=int, default=3)
    cores = len(os.sched_getaffinity(0))
    powers = [2**n for n in range(cores.bit_length())]
    parser.add_argument("--workers", type=int, nargs="*", default=powers, help="numbers of processes to try")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", type=Path, help="another checkout, to be compared in turns with this one")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    environment = {"cores": cores, "machine": platform.machine(), "pillow": PIL.__version__}
    if given.against:
        rows = compare(given.against, given.turns, given.seconds)
        print(f"CPU ms an image, medians of {given.turns} turns\n\n| image | before | after | times faster |")
        print("|---|---|---|---|")
        for kind, row in rows.items():
            print(f"| {kind} | {row['before']:.1f} | {row['after']:.1f} | {row['times_faster']:.2f} |")
        if given.json:
            result = {"environment": environment, "cpu_ms_per_image": rows}
            given.json.write_text(json.dumps(result, indent=1) + "\n")
        return

    single: dict[str, dict[str, float]] = {}
    kinds = {}
    for size_name, size in SIZES.items():
        image = picture(size)
        for format in FORMATS:
            uri = encoded(image, format)
            kinds[f"{format} {size_name}"] = uri, read_data_uri(uri).header
    scaled: dict[str, dict[str, float]] = {}
    photo = kinds["JPEG 12 MP"]
    for _ in range(given.rounds):
        for kind, (uri, header) in kinds.items():
            single[kind] = better(single.get(kind), await rate(uri, header, 1, given.seconds))
        for workers in given.workers:
            found = await rate(*photo, workers, given.seconds)
            scaled[str(workers)] = better(scaled.get(str(workers)), found)

    print(f"{cores} cores, {platform.machine()}, Pillow {PIL.__version__}; best of {given.rounds} rounds\n")
    print("| one worker | file MB | ms an image | ms a megapixel | CPU ms a megapixel | gateway's CPU ms an image |")
    print("|---|---|---|---|---|---|")
    for kind, row in single.items():
        file_mb = len(kinds[kind][0]) * 0.75e-6
        print(
            f"| {kind} | {file_mb:.1f} | {1000 / row['images_per_s']:.0f} | {1000 / row['megapixels_per_s']:.1f} "
            f"| {row['worker_cpu_ms_per_megapixel']:.1f} | {row['gateway_cpu_ms_per_image']:.1f} |"
        )
    print("\n| workers, JPEG 12 MP | images/s | against one | CPU ms a megapixel |")
    print("|---|---|---|---|")
    first = next(iter(scaled.values()))["images_per_s"]
    for workers_name, row in scaled.items():
        print(
            f"| {workers_name} | {row['images_per_s']:.1f} | {row['images_per_s'] / first:.2f} "
            f"| {row['worker_cpu_ms_per_megapixel']:.1f} |"
        )
    if given.json:
        result = {"environment": environment, "one worker": single, "workers, JPEG 12 MP": scaled}
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    uvloop.run(main())
