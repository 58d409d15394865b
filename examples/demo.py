"""`lensmith demo`: the whole line on a public dataset, from labelled pictures to an answering API.

Each stage is the command a user would run (`lensmith train`, `eval`, `export`, `serve`, `modelfile generate`), called
with the recipes in examples/recipes/. Nothing is downloaded.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modelfiles.hardware.python_child import free_port

EXAMPLES = Path(__file__).resolve().parent
RECIPES = EXAMPLES / "recipes"
MARKER = ".lensmith-demo"
MODEL = "shapes-vl-easy-vqa"
READY_SECONDS = 120
# The metrics people look at first.
SHOWN_METRICS = (
    "lensmith_requests_total{",
    "lensmith_time_to_first_token_seconds_sum",
    "lensmith_time_to_first_token_seconds_count",
    "lensmith_generation_tokens_total{",
    "lensmith_engine_up",
)


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Work folder."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the summary to this file.")
@click.option("--keep", is_flag=True, help="Leave the server running.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the server.  [default: a free one]")
def demo(out: Path, json_file: Path | None, keep: bool, port: int) -> None:
    """Run the whole line on a public dataset: train, merge, serve, ask."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Found out now rather than minutes later; the command's parent says what to install.
    for package in ("easy_vqa", "openai", "peft", "bitsandbytes"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
    out = out.resolve()
    start_afresh(out)
    Line(out, port or free_port(), keep).run(json_file)


def start_afresh(out: Path) -> None:
    """Empties the work folder of an earlier demo; refuses any other folder that is not empty."""
    if out.exists() and not (out / MARKER).exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.ClickException(f"{out} is not a demo's work folder; choose another one with --out.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER).touch()


class Line:
    """The demo's stages over one work folder."""

    def __init__(self, out: Path, port: int, keep: bool) -> None:
        self.out = out
        self.keep = keep
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.data, self.adapter, self.merged = out / "data", out / "adapter", out / "merged"
        self.console = Console(highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}

    def run(self, json_file: Path | None) -> None:
        began = time.monotonic()
        with self.stage("data", "easy-VQA as ShareGPT rows"):
            self.write_data()
        with self.stage("before", "the base model answers the test questions"):
            before = self.evaluate("before")
        with self.stage("train", "NF4 double-quantised QLoRA on the training questions"):
            self.train()
        with self.stage("after", "the tuned model answers the same questions"):
            after = self.evaluate("after", f"adapter_name_or_path={self.adapter}")
        with self.stage("merge", "adapter and base become one model folder"):
            self.merge()
        with self.serving() as server:
            with self.stage("ask", "one picture through the official openai client"):
                self.ask()
            with self.stage("modelfile", "what Ollama needs"):
                self.modelfile()
        self.seconds["total"] = time.monotonic() - began
        summary = {
            "before": {"exact_match": before.exact_match, "n": before.n},
            "after": {"exact_match": after.exact_match, "n": after.n},
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }
        self.show(summary)
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(summary, indent=2) + "\n")
        if self.keep:
            self.console.print(
                f"\nThe server goes on at {self.url}/v1 (log: {self.out}/server.log). End it: kill {server.pid}"
            )
        else:
            command = (
                f"lensmith serve {shlex.quote(os.path.relpath(self.merged))} --model-name {MODEL} --port {self.port}"
            )
            self.console.print(f"\nServe it again, for the curl line above: {command}")

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Prints a heading and times what runs inside."""
        self.console.print(f"\n[bold cyan]{name}[/]  {title}")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    def write_data(self) -> None:
        from examples.easy_vqa import write_dataset

        counts = write_dataset(self.data)
        self.console.print(f"{counts['train']:,} training and {counts['test']:,} test questions in {self.data}")

    def recipe(self, name: str, *overrides: str) -> Any:
        from finetune.recipe.load import load_recipe

        path = RECIPES / f"easy_vqa_{name}.yaml"
        common = [f"model_name_or_path={EXAMPLES / 'shapes-vl'}"]
        if name != "export":
            common.append(f"dataset_dir={self.data}")
        return load_recipe(path, [*common, *overrides])

    def evaluate(self, name: str, *overrides: str) -> Any:
        from finetune.evaluation.evaluate import evaluate

        result = evaluate(self.recipe("eval", f"output_dir={self.out / name}", *overrides), self.console)
        self.console.print(f"exact match {100 * result.exact_match:.2f} % of {result.n:,} answers")
        return result

    def train(self) -> None:
        from finetune.training.loop import train

        result = train(self.recipe("train", f"output_dir={self.adapter}"), self.console)
        if result.interrupted is not None:
            raise click.ClickException(f"Interrupted; the adapter's last checkpoint is in {self.adapter}.")
        self.console.print(
            f"{result.steps} steps, {result.samples_per_second:.0f} samples/s\n"
            f"loss curve:  {self.adapter}/training_loss.png\n"
            f"report:      {self.adapter}/report.html\n"
            f"TensorBoard: tensorboard --logdir {self.adapter}/runs"
        )

    def merge(self) -> None:
        from finetune.export.merge import merge

        merge(self.recipe("export", f"adapter_name_or_path={self.adapter}", f"export_dir={self.merged}"), self.console)
        self.console.print(f"{self.merged}")

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        """`lensmith serve` as a child, ready; it ends here unless it is to be kept and all went well."""
        command = [sys.executable, "-m", "lensmith", "serve", str(self.merged), "--engine", "transformers"]
        command += ["--port", str(self.port), "--model-name", MODEL]
        with open(self.out / "server.log", "wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=EXAMPLES.parent)
        kept = False
        try:
            with self.stage("serve", "the gateway starts the embedded engine and waits for it"):
                wait_until_ready(server, self.url, self.out / "server.log")
                self.console.print(f"ready at {self.url}/v1")
            yield server
            kept = self.keep
        finally:
            if not kept:
                end(server)

    def ask(self) -> None:
        import openai

        row = json.loads((self.data / "easy_vqa_test.json").read_text())[0]
        question = row["conversations"][0]["value"].removeprefix("<image>")
        picture = (self.data / row["images"][0]).read_bytes()
        uri = "data:image/png;base64," + base64.b64encode(picture).decode()
        content: Any = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": question}]
        messages: Any = [{"role": "user", "content": content}]
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=60)
        plain = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
        self.console.print(f"picture  {self.data / row['images'][0]}\nquestion {escape(question)}")
        self.console.print(f"plain    [bold]{escape(plain.choices[0].message.content or '')}[/]")
        stream = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        self.console.print(f"streamed [bold]{escape(''.join(pieces))}[/]  (label: {row['conversations'][1]['value']})")
        body = json.dumps({"model": MODEL, "messages": messages, "temperature": 0})
        self.console.print("\nThe same with curl:", style="bold")
        # Not through the console: a pasted line must not be wrapped or styled.
        print(f"curl -s {self.url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}")
        self.console.print(f"\nFrom {self.url}/metrics:", style="bold")
        for line in fetch(f"{self.url}/metrics").splitlines():
            if line.startswith(SHOWN_METRICS):
                print(line)

    def modelfile(self) -> None:
        stage = self.out / "ollama"
        command = [sys.executable, "-m", "lensmith", "modelfile", "generate", str(self.merged), "-o", str(stage)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent)
        if done.returncode:
            raise click.ClickException(f"lensmith modelfile generate failed: {done.stderr.strip()}")
        print((stage / "Modelfile").read_text().rstrip())
        self.console.print(f"\nollama create {MODEL} -f {os.path.relpath(stage / 'Modelfile')}")
        # What Ollama would make of this model's small images, and the llama-server line that keeps their size.
        self.console.print(done.stderr.strip(), style="yellow", markup=False, highlight=False)

    def show(self, summary: dict[str, Any]) -> None:
        table = Table(title="\neasy-VQA, test questions", title_justify="left", title_style="bold")
        table.add_column("")
        table.add_column("exact match", justify="right")
        table.add_column("questions", justify="right")
        for name in ("before", "after"):
            table.add_row(name, f"{100 * summary[name]['exact_match']:.2f} %", f"{summary[name]['n']:,}")
        self.console.print(table)
        times = Table(title="seconds", title_justify="left", title_style="bold")
        for name in summary["seconds"]:
            times.add_column(name, justify="right")
        times.add_row(*(f"{value:.1f}" for value in summary["seconds"].values()))
        self.console.print(times)


def wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Returns when /ready answers 200. Raises ClickException if the server ends or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise click.ClickException(f"lensmith serve ended with {server.returncode}: {last}")
        try:
            fetch(f"{url}/ready")
            return
        except OSError:  # refused, or 503 while the engine loads
            time.sleep(0.2)
    raise click.ClickException(f"The server was not ready within {READY_SECONDS} s; see {log}.")


def fetch(url: str) -> str:
    response: IO[bytes] = urllib.request.urlopen(url, timeout=10)
    with response:
        return response.read().decode()


def end(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for the whole session when that is not enough."""
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
