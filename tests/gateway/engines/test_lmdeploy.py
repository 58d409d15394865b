"""`lensmith serve DIR --engine lmdeploy`, with a package of that name that logs and fails as the real one does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from modelfiles.folder.safetensors_header import read_header
from tests.support.gateway.model_shapes import make_qwen3_vl, write_safetensors
from tests.support.gateway.processes import Process, lensmith_serve, until
from tests.support.gateway.requests import CHAT, envelope
from tests.support.paths import ROOT, SUPPORT

T4 = "Tesla T4, 15360, 14910, 7.5, 580.95.05"
POST = "import httpx, sys; httpx.post(sys.argv[1], content=sys.argv[2], timeout=60)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3_vl(tmp_path_factory.mktemp("models") / "vl-2b", "2B")


Serve = Callable[..., Any]


@pytest.fixture
def serve(model: Path, tmp_path: Path) -> Serve:
    """Starts the gateway on a machine with these GPUs, and an LMDeploy with this fault."""

    @contextmanager
    def start(*options: str, fault: str = "", gpu: str = T4, pause: float = 0.0, **more: str) -> Iterator[Process]:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{gpu}\\n'\n")
        program.chmod(0o755)
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": f"{SUPPORT / 'gateway' / 'fake_lmdeploy'}:{ROOT}",
            "FAKE_LMDEPLOY": fault,
            "FAKE_LMDEPLOY_PAUSE": str(pause),
            **more,
        }
        with lensmith_serve(str(model), "--engine", "lmdeploy", *options, **environment) as gateway:
            yield gateway

    return start


def arguments(gateway: Process) -> list[str]:
    lines = [line for line in gateway.log().splitlines() if "lmdeploy: arguments: " in line]
    found: list[str] = json.loads(lines[-1].split("arguments: ")[1])
    return found


def option(words: list[str], name: str) -> str:
    """The value that argparse takes: the last one."""
    at = len(words) - 1 - words[::-1].index(f"--{name}")
    return words[at + 1]


def ask(gateway: Process, text: str) -> httpx.Response:
    body = {"model": "vl-2b", "messages": [{"role": "user", "content": text}]}
    return httpx.post(gateway.url + CHAT, json=body, timeout=60)


def test_the_plan_starts_the_engine_and_the_log_tells_each_phase(serve: Serve) -> None:
    with serve(pause=0.3, OMP_NUM_THREADS="7") as gateway:
        told = gateway.wait_until("/ready", 503).text
        gateway.wait_until("/ready", 200)
        assert "starting" in told
        words = arguments(gateway)
        assert words[:2] == ["serve", "api_server"]
        assert option(words, "backend") == "pytorch"
        assert option(words, "dtype") == "float16"
        assert "--eager-mode" in words
        assert "--enable-prefix-caching" not in words
        assert 0.5 < float(option(words, "cache-max-entry-count")) < 1
        log = gateway.log()
        for phase in ("loading the weights", "sizing the cache", "allocating the cache", "answering a test picture"):
            assert f"lensmith: The lmdeploy engine is starting: {phase}, after" in log
        ready = next(line for line in log.splitlines() if "is ready after" in line)
        assert "importing its libraries" in ready
        assert ready.endswith("the cache holds 84,608 tokens.")
        assert " - INFO - " not in log
        from_cores = str(max(1, min(4, len(os.sched_getaffinity(0)) // 4)))
        assert f"lmdeploy: threads: 7 {os.environ.get('MKL_NUM_THREADS', from_cores)}" in log
        assert ask(gateway, "hi").json()["choices"][0]["message"]["content"] == "Hello wörld 🙂"


def test_the_engines_key_stands_in_no_list_of_processes_and_in_no_log(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        words = arguments(gateway)
        assert option(words, "api-keys") == "<key>"
        (child,) = psutil.Process(gateway.process.pid).children()
        key = child.environ()["LENSMITH_ENGINE_KEY"]
        assert len(key) == 48
        assert key not in " ".join(child.cmdline()) + gateway.log()
        port = option(words, "server-port")
        assert [c.laddr.ip for c in child.net_connections() if c.status == "LISTEN"] == ["127.0.0.1"]
        url = f"http://127.0.0.1:{port}" + CHAT
        assert httpx.post(url, json={"model": "vl-2b", "messages": []}).status_code == 401, "nobody else may use it"
        assert ask(gateway, "hi").status_code == 200


def test_the_process_that_lmdeploy_spawns_runs_on_uvloop_and_is_spared_by_the_collector(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        assert "lmdeploy: engine process: loop uvloop, frozen True, trim 4096" in gateway.log()


def test_the_interval_of_collections_that_was_asked_for_stays(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDEPLOY_MULTIMODAL_SESSION_TRIM_COUNT", "128")
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        assert "frozen True, trim 128" in gateway.log()


def test_as_many_answers_at_once_as_the_engine_was_planned_for(serve: Serve) -> None:
    with serve("--engine-arg", "max-batch-size=2", "--engine-arg", "eager_mode=false") as gateway:
        gateway.wait_until("/ready", 200)
        words = arguments(gateway)
        assert option(words, "max-batch-size") == "2"
        assert "--eager-mode" not in words
        body = {"model": "vl-2b", "stream": True, "messages": [{"role": "user", "content": "count 400 0.05"}]}
        with httpx.Client(timeout=60) as client, contextlib.ExitStack() as streams:
            for _ in range(2):
                streams.enter_context(client.stream("POST", gateway.url + CHAT, json=body))
            third = subprocess.Popen([sys.executable, "-c", POST, gateway.url + CHAT, json.dumps(body)])
            until("one waiting", lambda: gateway.metric("lensmith_requests_waiting") == 1)
            assert gateway.metric("lensmith_requests_running") == 2
            third.kill()
            third.wait()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("no-bos", "config.json's text_config has no bos_token_id, without which LMDeploy does not load a model. Copy"),
        ("wrong !!!!!!!!", "Its answer to a test picture was '!!!!!!!!', as of a model whose numbers overflow."),
    ],
)
def test_a_start_that_can_never_succeed_ends_at_once_with_one_sentence(serve: Serve, fault: str, told: str) -> None:
    with serve(fault=fault) as gateway:
        assert gateway.process.wait(60) == 1
        log = gateway.log()
        last = log.strip().splitlines()[-1]
        assert last.startswith("Error: The lmdeploy engine ")
        assert told in last
        assert log.count("lmdeploy: arguments: ") == 1
        assert "Traceback" not in last


def test_an_unknown_failure_is_tried_three_times_and_told_in_the_engines_words(serve: Serve) -> None:
    with serve(fault="strange") as gateway:
        assert gateway.process.wait(60) == 1
        log = gateway.log()
        assert log.count("lmdeploy: arguments: ") == 3
        last = log.strip().splitlines()[-1]
        assert "ValueError: the moon is in the wrong house." in last
        assert last.endswith("It was started 3 times and never became ready.")


def test_a_model_that_does_not_fit_is_refused_before_anything_starts(serve: Serve) -> None:
    with serve(gpu="Tesla T4, 15360, 3000, 7.5, 580.95.05") as gateway:
        assert gateway.process.wait(60) == 1
        last = gateway.log().strip().splitlines()[-1]
        assert last.startswith("Error: The weights alone need more than the 2.93 GiB that are free on the Tesla T4")
        assert "arguments" not in gateway.log()


def test_out_of_memory_in_service_is_told_counted_and_followed_by_a_new_start(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        answer = ask(gateway, "fault out-of-memory")
        error = envelope(answer, 502)
        assert "It ran out of GPU memory." in error["message"]
        gateway.wait_until("/ready", 200)
        assert gateway.metric("lensmith_engine_failures_total", reason="out_of_memory") == 1
        assert gateway.metric("lensmith_engine_restarts_total") == 1
        assert ask(gateway, "hi").status_code == 200


def test_a_stall_that_lmdeploy_reports_is_a_hang(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        assert envelope(ask(gateway, "fault stall"), 502)["code"] == "engine_error"
        gateway.wait_until("/ready", 200)
        assert gateway.metric("lensmith_engine_failures_total", reason="hang") == 1


def test_an_engine_killed_for_memory_says_so(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        child = psutil.Process(gateway.process.pid).children()[0]
        child.send_signal(signal.SIGKILL)
        assert "The kernel does that when the machine's memory is full." in gateway.wait_until("/ready", 503).text


def test_tools_are_served_with_a_parser_for_them(serve: Serve) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"model": "vl-2b", "messages": [{"role": "user", "content": "hi"}], "tools": tools}
    for options, status in ((["--engine-arg", "tool-call-parser=qwen3"], 200), ([], 400)):
        with serve(*options) as gateway:
            gateway.wait_until("/ready", 200)
            assert httpx.post(gateway.url + CHAT, json=body, timeout=60).status_code == status


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A PEFT adapter of the model's first layer, with PEFT's names on transformers 5."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    module = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.lora_A.weight": [2, 2048], f"{module}.lora_B.weight": [2048, 2]}
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def test_an_adapter_is_served_if_it_changes_something(serve: Serve, adapter: Path) -> None:
    names = ("tuned", "lazy", "broken", "base")
    options = [word for name in names for word in ("--adapters", f"{name}={adapter}")]
    with serve(*options) as gateway:
        gateway.wait_until("/ready", 200)
        # "base" is one of the names under which LMDeploy would take another chat template.
        listed = [model["id"] for model in httpx.get(gateway.url + "/v1/models").json()["data"]]
        assert listed == ["vl-2b", "tuned", "base"], gateway.log()
        body = {"model": "tuned", "messages": [{"role": "user", "content": "echo"}]}
        sent = json.loads(httpx.post(gateway.url + CHAT, json=body).json()["choices"][0]["message"]["content"])
        assert sent["body"]["model"] == "adapter-tuned"
        refused = httpx.post(gateway.url + CHAT, json={**body, "model": "lazy"})
        assert envelope(refused, 503)["code"] == "engine_unavailable"
        log = gateway.log()
        assert "adapter-lazy is not served: its answer to a test picture is the model's own: it changes nothing." in log
        assert (
            "adapter-broken is not served: its answer to a test picture had probabilities that are not numbers." in log
        )
        given = [word for word in arguments(gateway) if word.startswith("adapter-")]
        assert [word.partition("=")[0] for word in given] == [f"adapter-{name}" for name in names]
        written = Path(given[0].partition("=")[2])
        assert "base_model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in read_header(
            written / "adapter_model.safetensors"
        )
    assert not written.exists()


def test_an_adapter_that_lmdeploy_cannot_have_is_refused_with_the_reason(serve: Serve, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with serve("--adapters", f"tuned={adapter}") as gateway:
        assert gateway.process.wait(60) == 1
        last = gateway.log().strip().splitlines()[-1]
        assert last.endswith("uses use_dora, which LMDeploy does not have; merge it with `lensmith export`.")
