"""The process itself: how it starts, fails and ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import httpx
from safetensors.torch import load_file, save_file

from tests.support.gateway.embedded_process import MODEL, EngineProcess, wait_for
from tests.support.paths import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.embedded", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def failed_with_a_sentence(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr
    sentence = result.stderr.strip()
    assert len(sentence.splitlines()) == 1, sentence
    assert all(word in sentence for word in words), sentence


def test_health_says_loading_first(engine: EngineProcess):
    assert (engine.first_health.status_code, engine.first_health.json()) == (503, {"status": "loading"})


def test_folders_that_cannot_be_served_end_it_with_a_sentence(tmp_path, model_dir):
    failed_with_a_sentence(run(str(tmp_path / "absent"), "--port", "0"), "absent", "does not exist")
    (tmp_path / "config.json").write_text((model_dir / "config.json").read_text())
    failed_with_a_sentence(run(str(tmp_path), "--port", "0"), "no weights")


def test_a_folder_whose_weights_lack_a_tensor_is_not_served(tmp_path, model_dir):
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.language_model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    failed_with_a_sentence(run(str(tmp_path), "--port", "0"), "layers.0.mlp.up_proj")


def test_a_port_in_use_ends_it_with_a_sentence(model_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        failed_with_a_sentence(run(str(model_dir), "--port", port), port)


def test_it_answers_503_while_loading_and_ends_with_its_parent(model_dir):
    # A parent that starts the engine, says its number, and waits to be killed.
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)\n"
            "print(child.pid, child.stdout.readline().split()[-1], flush=True)\n"
            "time.sleep(300)\n",
            *(sys.executable, "-m", "gateway.embedded", str(model_dir), "--port", "0", "--served-model-name", MODEL),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid, url = parent.stdout.readline().split()
    response = httpx.post(f"{url}/v1/chat/completions", json={"model": MODEL})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
    wait_for(lambda: httpx.get(f"{url}/health").status_code == 200, 120)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16000, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        parent.kill()
        parent.wait()
        parent.stdout.close()
        wait_for(lambda: not alive(int(pid)))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie whose new parent has not collected it yet is dead.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_sigterm_ends_it_even_while_it_loads(model_dir):
    engine = EngineProcess(model_dir, key=None)
    engine.process.send_signal(signal.SIGTERM)
    assert engine.process.wait(60) == -signal.SIGTERM
