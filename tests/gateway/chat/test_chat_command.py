"""`lensmith chat` as a process: an adapter beside its base, pictures, interruptions, servers, hostile text."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import yaml

from tests.support.gateway.images import image_file
from tests.support.gateway.processes import Process, until
from tests.support.gateway.saying_adapter import saying_adapter
from tests.support.paths import ROOT, SHAPES_VL
from tests.support.signals import heed_signals


def chat(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "lensmith", "chat", *arguments],
        cwd=ROOT,
        preexec_fn=heed_signals,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What it printed up to and with this text."""
    assert process.stdout is not None
    said = ""
    while text not in said:
        letter = process.stdout.read(1)
        assert letter, f"it ended: {said}"
        said += letter
    return said


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def test_an_adapter_answers_about_a_picture_until_it_is_interrupted(tmp_path: Path) -> None:
    adapter = saying_adapter(tmp_path / "output", "Ġtriangle")
    (adapter / "recipe.yaml").write_text(yaml.safe_dump({"model_name_or_path": str(SHAPES_VL)}))
    (tmp_path / "red.png").write_bytes(image_file("PNG"))
    process = chat(str(adapter))
    read_until(process, "Ctrl-D ends.")
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    libraries = {Path(file.path).name for file in psutil.Process(process.pid).memory_maps()}
    assert not any("torch" in name for name in libraries)
    say(process, f"/image {tmp_path / 'none.png'}")
    read_until(process, "cannot be read")
    say(process, f"/image {tmp_path / 'red.png'}")
    read_until(process, "1 picture with the next question.")
    for _ in range(2):  # an interrupted answer is part of the conversation, which goes on
        say(process, "What is this?")
        read_until(process, "triangle triangle triangle")
        process.send_signal(signal.SIGINT)
        read_until(process, " …")
    process.communicate(timeout=60)  # closes its input, as Ctrl-D does
    assert process.returncode == 0
    until("the engine has ended", lambda: not any(child.is_running() for child in family))


def test_a_server_is_talked_to_by_its_url(engine: Process) -> None:
    process = chat(engine.url)
    said, _ = process.communicate("Hello\n/clear\n/nonsense\nHello again\n", timeout=60)
    assert process.returncode == 0
    assert "answers. /image PATH" in said
    assert "A new conversation." in said
    assert "Ctrl-C ends an answer" in said


def test_what_cannot_be_talked_to_is_a_sentence(tmp_path: Path, engine: Process) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    cases = (
        (("/nowhere",), "is no folder"),
        (("http://127.0.0.1:1",), "Nothing answers"),
        ((engine.url, "--model", "other"), "not 'other'"),
        ((str(tmp_path),), "adapter_model.safetensors"),
        ((str(tmp_path), "--model", "x"), "for a server at a URL"),
    )
    for arguments, told in cases:
        process = chat(*arguments)
        said, _ = process.communicate(timeout=60)
        assert process.returncode != 0
        assert told in said
        assert "Traceback" not in said


class Hostile(BaseHTTPRequestHandler):
    """Lists a model, and answers with a text that would set the terminal's title and clear its screen."""

    def do_GET(self) -> None:
        self._send(json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}), "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        chunk = {"choices": [{"index": 0, "delta": {"content": "a\x1b]0;x\x07b\x9b2Jc\nd"}}]}
        self._send(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", "text/event-stream")

    def _send(self, text: str, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def hostile() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_what_a_model_says_cannot_command_the_terminal() -> None:
    with hostile() as url:
        said, _ = chat(url).communicate("Hello\n", timeout=60)
    assert "a]0;xb2Jc\nd" in said
    assert "\x1b" not in said
