"""`lensmith serve DIR --engine vllm`, with a package of that name that logs, answers and fails as vLLM 0.33 does."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.engines.startup.vllm_log import VLLM_LOG
from tests.support.gateway.model_shapes import make_qwen3_vl, write_safetensors
from tests.support.gateway.processes import Process, lensmith_serve, until
from tests.support.gateway.requests import CHAT, envelope
from tests.support.paths import ROOT, SUPPORT

L4 = "NVIDIA L4, 23034, 22500, 8.9, 580.95.05"
T4 = "Tesla T4, 15360, 14910, 7.5, 580.95.05"
Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_qwen3_vl(tmp_path_factory.mktemp("models") / "vl-2b", "2B")
    (folder / "chat_template.jinja").write_text("{% if tools %}<tool_call>{% endif %}{{ messages }}")
    return folder


@pytest.fixture
def serve(model: Path, tmp_path: Path) -> Serve:
    @contextmanager
    def start(
        *options: str, fault: str = "", gpu: str = L4, pause: float = 0.0, shared: str = "", busy: bool = False
    ) -> Iterator[Process]:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{gpu}\\n'\n")
        program.chmod(0o755)
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": f"{SUPPORT / 'gateway' / 'fake_vllm'}:{ROOT}",
            "FAKE_VLLM": fault,
            "FAKE_VLLM_PAUSE": str(pause),
            "FAKE_VLLM_SHARED": shared,
            "FAKE_VLLM_BUSY": "1" if busy else "",
        }
        with lensmith_serve(str(model), "--engine", "vllm", *options, **environment) as gateway:
            yield gateway

    return start


def arguments(gateway: Process) -> list[str]:
    line = next(line for line in gateway.log().splitlines() if "vllm: arguments: " in line)
    found: list[str] = json.loads(line.split("arguments: ")[1])
    return found


def option(words: list[str], name: str) -> str:
    return words[words.index(f"--{name}") + 1]


def ask(gateway: Process, text: str, **more: object) -> httpx.Response:
    body = {"model": "vl-2b", "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(gateway.url + CHAT, json=body, timeout=60)


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_plan_starts_the_engine_and_the_log_tells_each_phase(serve: Serve, model: Path) -> None:
    with serve("--max-images", "3", pause=0.3) as gateway:
        gateway.wait_until("/ready", 200)
        words = arguments(gateway)
        assert words[:2] == ["serve", str(model)]
        assert option(words, "dtype") == "bfloat16"
        assert option(words, "max-model-len") == "32768"
        assert option(words, "max-num-seqs") == "64"
        assert json.loads(option(words, "limit-mm-per-prompt")) == {"image": 3}
        assert json.loads(option(words, "mm-processor-kwargs")) == {"min_pixels": 65536, "max_pixels": 16777216}
        assert option(words, "chat-template") == str(model / "chat_template.jinja")
        assert option(words, "tool-call-parser") == "hermes"
        assert "--enable-auto-tool-choice" in words
        share = float(option(words, "gpu-memory-utilization"))
        assert 0.85 < share <= 0.92, "vLLM refuses to start when less is free"
        log = gateway.log()
        for phase in ("loading the weights", "compiling, and sizing the cache", "answering a test picture"):
            assert f"lensmith: The vllm engine is starting: {phase}, after" in log
        assert next(line for line in log.splitlines() if "is ready after" in line).endswith("holds 84,608 tokens.")
        assert " INFO 11-28" not in log
        assert "it/s" not in log


def test_requests_go_there_with_the_engines_key_which_no_list_shows(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        assert ask(gateway, "hi").json()["choices"][0]["message"]["content"] == "Hello wörld 🙂"
        (server,) = psutil.Process(gateway.process.pid).children()
        key = server.environ()["VLLM_API_KEY"]
        assert key not in " ".join(server.cmdline()) + gateway.log()
        url = f"http://127.0.0.1:{option(arguments(gateway), 'port')}"
        assert httpx.get(url + "/v1/models").status_code == 401, "nobody else may use it"


def test_its_metrics_are_shown_under_the_gateways_names(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        engine = "vl-2b/vllm-0"
        assert gateway.metric("lensmith_engine_metrics_up", engine=engine) == 1
        assert gateway.metric("lensmith_engine_vllm_num_requests_running", engine=engine) == 3
        assert gateway.metric("lensmith_engine_vllm_num_requests_waiting", engine=engine) == 1
        assert gateway.metric("lensmith_engine_vllm_kv_cache_usage_perc", engine=engine) == 0.25
        assert gateway.metric("lensmith_engine_vllm_time_to_first_token_seconds_count", engine=engine) == 3


def test_its_whole_process_tree_ends_with_it(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        tree = psutil.Process(gateway.process.pid).children(recursive=True)
        assert len(tree) == 2, "the server and its engine"
        assert gateway.end() == 0
        until("all gone", lambda: not any(lives(process) for process in tree))


@pytest.mark.parametrize("number", [0, signal.SIGKILL, signal.SIGTERM])
def test_the_shared_memory_of_busy_processes_ends_with_them(serve: Serve, number: int) -> None:
    """A process in the middle of a step ignores SIGTERM."""
    name = f"lensmith-test-{os.getpid()}-{number}"
    segment = Path("/dev/shm", name)
    with serve(shared=name, busy=True) as gateway:
        gateway.wait_until("/ready", 200)
        assert segment.exists()
        tree = psutil.Process(gateway.process.pid).children(recursive=True)
        if number:
            (server,) = psutil.Process(gateway.process.pid).children()
            server.send_signal(number)
            gateway.wait_until("/ready", 503)
            gateway.wait_until("/ready", 200)  # the new one has the name, too
            tree += psutil.Process(gateway.process.pid).children(recursive=True)
        assert gateway.end() == 0
    assert not segment.exists()
    until("all gone", lambda: not any(lives(process) for process in tree))


def test_out_of_memory_in_service_is_told_counted_and_followed_by_a_new_start(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        before = psutil.Process(gateway.process.pid).children(recursive=True)
        assert "It ran out of GPU memory." in envelope(ask(gateway, "fault out-of-memory"), 502)["message"]
        gateway.wait_until("/ready", 200)
        assert gateway.metric("lensmith_engine_failures_total", reason="out_of_memory") == 1
        until("all gone", lambda: not any(lives(process) for process in before))


def test_an_engine_process_that_was_killed_is_told_and_not_blamed_on_an_earlier_request(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        told = envelope(ask(gateway, "fault killed"), 502)
        assert (told["code"], "Its process EngineCore was ended." in told["message"]) == ("engine_error", True)
        assert "See stack trace" not in told["message"]
        gateway.wait_until("/ready", 200)
        assert gateway.metric("lensmith_engine_failures_total", reason="exit") == 1
        warned = next(line for line in gateway.log().splitlines() if "engine stopped working and was ended." in line)
        assert "Its process EngineCore was ended." in warned
        assert "JSONDecodeError" not in warned


def test_a_start_that_can_never_succeed_ends_at_once_with_one_sentence(serve: Serve) -> None:
    with serve(fault="no-room") as gateway:
        assert gateway.process.wait(60) == 1
        last = gateway.log().strip().splitlines()[-1]
        assert last.startswith("Error: The vllm engine exited with code 1 while loading the weights.")
        assert "The cache is too small for one request of 32768 tokens, which needs 3.50 GiB." in last
        assert gateway.log().count("vllm: arguments: ") == 1


def test_what_it_is_told_on_a_card_without_bfloat16(serve: Serve) -> None:
    with serve("--engine-arg", "max-num-seqs=2", gpu=T4) as gateway:
        gateway.wait_until("/ready", 200)
        words = arguments(gateway)
        assert option(words, "dtype") == "float16"
        assert option(words, "max-num-seqs") == "2"


def test_an_answer_that_was_begun_is_continued(serve: Serve) -> None:
    begun = [{"role": "user", "content": "echo"}, {"role": "assistant", "content": "echo"}]
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        answer = httpx.post(gateway.url + CHAT, json={"model": "vl-2b", "messages": begun}, timeout=60)
        sent = json.loads(answer.json()["choices"][0]["message"]["content"])["body"]
        assert sent["continue_final_message"] is True
        assert sent["add_generation_prompt"] is False
        sent = json.loads(ask(gateway, "echo").json()["choices"][0]["message"]["content"])["body"]
        assert "continue_final_message" not in sent


def test_a_field_that_it_does_not_honour_is_refused(serve: Serve) -> None:
    with serve() as gateway:
        gateway.wait_until("/ready", 200)
        assert envelope(ask(gateway, "hi", reasoning_effort="low"), 400)["param"] == "reasoning_effort"
        assert envelope(ask(gateway, "hi", priority=1), 400)["param"] == "priority"
        assert ask(gateway, "hi", tools=[{"type": "function", "function": {"name": "f"}}]).status_code == 200


def test_adapters_are_told_with_the_rank_they_need(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 12, "lora_alpha": 4}))
    module = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    shapes = {f"{module}.lora_A.weight": [12, 2048], f"{module}.lora_B.weight": [2048, 12]}
    write_safetensors(folder / "adapter_model.safetensors", shapes)
    with serve("--adapters", f"tuned={folder}") as gateway:
        gateway.wait_until("/ready", 200)
        words = arguments(gateway)
        assert option(words, "lora-modules") == f"adapter-tuned={folder}"
        assert option(words, "max-lora-rank") == "16", "the next one that vLLM takes"
        assert "--enable-lora" in words
        listed = [model["id"] for model in httpx.get(gateway.url + "/v1/models").json()["data"]]
        assert listed == ["vl-2b", "tuned"]
        body = {"model": "tuned", "messages": [{"role": "user", "content": "echo"}]}
        sent = json.loads(httpx.post(gateway.url + CHAT, json=body).json()["choices"][0]["message"]["content"])
        assert sent["body"]["model"] == "adapter-tuned"


FREE = (
    "Free memory on device cuda:0 (3.10/22.03 GiB) on startup is less than desired GPU memory utilization (0.9, 19.83"
)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("RuntimeError: Failed to infer device type, please set the environment variable", "It found no GPU."),
        (f"ValueError: {FREE}", "Of the card's 22.03 GiB only 3.10 are free"),
        ("ValueError: No available memory for the cache blocks. Try increasing", "does not hold the weights"),
        ("ValueError: User-specified max_model_len (999999) is greater than the", "not made for 999999 tokens."),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "It ran out of GPU memory."),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability", "This GPU has no bfloat16."),
        ("ValueError: Model architectures ['Foo'] are not supported for now. Supported", "architecture ['Foo']."),
        ("KeyError: invalid tool call parser: frob (chose from { hermes })", "no tool-call parser frob."),
        ("ValueError: LoRA rank 64 is greater than max_lora_rank 16.", "rank 64"),
        ("main.py serve: error: unrecognized arguments: --frobnicate", "its arguments: unrecognized arguments: --frob"),
        ("OSError: [Errno 28] No space left on device", "The disk is full."),
        ("ValueError: the moon is in the wrong house", "ValueError: the moon is in the wrong house."),
    ],
)
def test_the_cause_of_a_failure_is_told_in_words(line: str, told: str) -> None:
    process = "(EngineCore pid=12) ERROR 11-28 05:00:00 [core.py:1584]"
    end = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    cause = VLLM_LOG.explain_exit([f"{process} EngineCore failed to start.", f"{process} {line}", end])
    assert cause is not None
    assert told in str(cause)
