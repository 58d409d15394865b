"""The studio's page Data with 100,000 rows, and an upload of 1 GiB: how long pages take, and the memory of the process.

python -m benchmarks.studio_data [--rows 100000] [--gib 1] [--out benchmarks/results/studio_data.json]

Rows have questions and answers of some lengths and share 2,000 pictures of 640 x 480 pixels. A page is there when
its HTML and all its thumbnails are; those are kept since the import, which looks at every picture.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from modelfiles.hardware.python_child import free_port

PICTURES = 2000
QUERIES = ("", "order=file", "order=longest", "show=sound&order=shortest", "text=number%20777", "min_tokens=400")
PAGES = 12  # drawn at random for each query
MEGABYTE = 2**20


def write_rows(folder: Path, rows: int) -> None:
    """A data file and its pictures."""
    draw = random.Random(0)
    (folder / "pictures").mkdir(parents=True)
    for n in range(PICTURES):
        noise = Image.effect_noise((160, 120), 80).resize((640, 480))
        Image.merge("RGB", [noise, noise.rotate(n % 360), noise]).save(folder / f"pictures/{n}.jpg", quality=85)
    with (folder / "rows.jsonl").open("w") as file:
        for n in range(rows):
            picture = "gone.jpg" if n % 10_000 == 5 else f"pictures/{n % PICTURES}.jpg"
            question, answer = f"<image>What is in picture number {n}?", "noise " * draw.randrange(1, 200)
            file.write(json.dumps({"query": question, "response": answer, "images": [picture]}) + "\n")


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def busy(pid: int) -> float:
    """Seconds for which a process has kept a processor busy: what a page costs, however busy the machine is."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def time_pages(client: httpx.Client, pid: int, query: str) -> tuple[list[float], float]:
    """Seconds of some pages of a filter, thumbnails included, and the processor's seconds for one of them."""
    first = client.get(f"data/many?{query}").text
    numbers = [int(number) for number in re.findall(r"[?&;]page=(\d+)", first)]
    last = max(numbers, default=1)
    draw = random.Random(query)
    seconds, begun = [], busy(pid)
    for page in [1, last, *(draw.randint(1, last) for _ in range(PAGES - 2))]:
        start = time.perf_counter()
        text = client.get(f"data/many?{query}&page={page}").text
        for source in re.findall(r'<img src="([^"]+)"', text):
            client.get(source).raise_for_status()
        seconds.append(time.perf_counter() - start)
    return seconds, (busy(pid) - begun) / PAGES


def upload(client: httpx.Client, pid: int, gib: float) -> tuple[float, int]:
    """(seconds, most bytes by which the process grew) of an upload."""
    before = most = resident(pid)

    def chunks() -> Iterator[bytes]:
        nonlocal most
        data = os.urandom(MEGABYTE)
        for _ in range(int(gib * 1024)):
            yield data
            most = max(most, resident(pid))

    start = time.perf_counter()
    headers = {"content-length": str(int(gib * 1024) * MEGABYTE)}
    client.put("data/large/files/large.bin", content=chunks(), headers=headers, timeout=600).raise_for_status()
    return time.perf_counter() - start, most - before


def token(client: httpx.Client) -> str:
    """The token that requests which change something need."""
    found = re.search(r'name="csrf-token" content="(\w+)"', client.get("data").text)
    assert found is not None
    return found[1]


def run(rows: int, gib: float, folder: Path) -> dict[str, Any]:
    port = free_port()
    command = [sys.executable, "-m", "lensmith", "studio", "--no-password", "--port", str(port)]
    write_rows(folder / "rows", rows)
    studio = subprocess.Popen([*command, "--folder", str(folder / "workspace")], stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/", timeout=60) as client:
            for _ in range(100):
                try:
                    client.get("data")
                    break
                except httpx.ConnectError:
                    time.sleep(0.1)
            started = resident(studio.pid)
            client.headers["x-csrf-token"] = token(client)
            start = time.perf_counter()
            value = {"source": "path", "value": str(folder / "rows"), "name": "many"}
            client.post("data", data=value, follow_redirects=True).raise_for_status()
            while client.get("data/many/progress").status_code != 204:
                time.sleep(0.2)
            imported = time.perf_counter() - start
            times = {query or "all": time_pages(client, studio.pid, query) for query in QUERIES}
            client.post("data", data={"source": "files", "name": "large"}).raise_for_status()
            seconds, growth = upload(client, studio.pid, gib)
            return {
                "rows": rows,
                "import_seconds": round(imported, 1),
                "page_seconds_worst": {query: round(max(values), 3) for query, (values, _) in times.items()},
                "page_seconds_median": {
                    query: round(statistics.median(values), 3) for query, (values, _) in times.items()
                },
                "page_processor_seconds": {query: round(cost, 3) for query, (_, cost) in times.items()},
                "memory_at_start_mib": round(started / MEGABYTE),
                "memory_after_pages_mib": round(resident(studio.pid) / MEGABYTE),
                "upload_gib": gib,
                "upload_seconds": round(seconds, 1),
                "upload_growth_mib": round(growth / MEGABYTE, 1),
            }
    finally:
        studio.terminate()
        studio.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(options.rows, options.gib, Path(folder))
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
