"""What the studio costs: the time to its first page and its memory, over an empty and over a full workspace.

python -m benchmarks.studio
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx
import psutil

from modelfiles.hardware.python_child import free_port
from studio.workspace.folder import Workspace

STARTS = 5
RUNS = 200  # of the full workspace
PAGES = ("", "data", "train", "runs", "evaluate", "chat", "serve")


class Started:
    """A studio that was started; seconds: until its first page was there."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        command = [
            sys.executable,
            "-m",
            "lensmith",
            "studio",
            "--folder",
            str(folder),
            "--port",
            str(port),
            "--no-password",
        ]
        begun = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                httpx.get(self.url).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.01)
        self.seconds = time.perf_counter() - begun

    @property
    def memory(self) -> float:
        """MB that are the process's own or shared: its resident set."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def fill(folder: Path) -> None:
    """Runs with a log of 1,000 lines each."""
    workspace = Workspace(folder)
    line = '{{"current_steps": {0}, "total_steps": 1000, "loss": 0.5, "lr": 0.0001, "elapsed_time": "0:10:00"}}\n'
    text = "".join(line.format(step) for step in range(1, 1001))
    for number in range(RUNS):
        run = workspace.create("runs", f"run-{number}")
        (run / "recipe.yaml").write_text("model_name_or_path: base\ndataset: shapes\n")
        (run / "output").mkdir()
        (run / "output" / "trainer_log.jsonl").write_text(text)


def page_seconds(url: str) -> float:
    begun = time.perf_counter()
    httpx.get(url, timeout=60).raise_for_status()
    return time.perf_counter() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        starts = []
        for _ in range(STARTS):
            studio = Started(Path(folder) / "empty")
            starts.append((studio.seconds, studio.memory))
            studio.stop()
        print(f"first page: {median(seconds for seconds, _ in starts):.2f} s after the start (of {STARTS} starts)")
        print(f"memory then: {median(memory for _, memory in starts):.0f} MB")
        fill(Path(folder) / "full")
        studio = Started(Path(folder) / "full")
        for page in PAGES:
            seconds = median(page_seconds(studio.url + page) for _ in range(5))
            print(f"/{page}: {1000 * seconds:.0f} ms with {RUNS} runs")
        print(f"memory after all pages: {studio.memory:.0f} MB")
        studio.stop()


if __name__ == "__main__":
    main()
