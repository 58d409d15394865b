"""`lensmith serve` says in one sentence what is wrong, before anything slow starts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway import cli
from gateway.engines import launch
from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process
from tests.support.paths import SHAPES_VL


def serve(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.serve, [str(argument) for argument in arguments])


def sentence(result: Result) -> str:
    """The error's last line; there must be no traceback and a code other than 0."""
    assert result.exit_code != 0
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.output.strip().splitlines()[-1]


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = serve(SHAPES_VL, "--port", str(port), "--engine", "transformers")
    assert sentence(result) == f"Error: Port {port} on 127.0.0.1 is in use; choose another one with --port."


def test_a_missing_folder(tmp_path: Path) -> None:
    said = sentence(serve(tmp_path / "none", "--port", "0", "--engine", "transformers"))
    assert "does not exist" in said


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl", "architectures": ["X"]}')
    said = sentence(serve(tmp_path, "--port", "0", "--engine", "transformers"))
    assert said.startswith("Error: ")
    assert "weights" in said or "safetensors" in said


def test_a_host_that_is_not_ours(tmp_path: Path) -> None:
    assert "Cannot listen on 192.0.2.1" in sentence(serve(SHAPES_VL, "--host", "192.0.2.1"))


def test_no_engine_at_the_url() -> None:
    port = free_port()
    said = sentence(serve("--engine", f"http://127.0.0.1:{port}/v1", "--port", "0"))
    assert said == f"Error: No engine to serve: nothing answers at http://127.0.0.1:{port}."


def test_something_else_at_the_url(gateway: Process) -> None:
    said = sentence(serve("--engine", gateway.url + "/nowhere", "--port", "0"))
    assert "answered HTTP 404" in said


def test_a_model_name_the_engine_does_not_have(engine: Process) -> None:
    said = sentence(serve("--engine", engine.url, "--model-name", "gpt-4", "--port", "0"))
    assert said == f"Error: The engine at {engine.url} serves fake, not 'gpt-4'."


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Give MODEL_DIR, --config FILE, or --engine URL"),
        ([SHAPES_VL, "--engine", "http://127.0.0.1:1"], "not both"),
        (["--engine", "http://"], "is not the address of an engine"),
        (["--engine", "http://[::1/v1"], "is not the address of an engine"),
        ([SHAPES_VL, "--engine", "sglang"], "--engine must be lmdeploy, transformers, vllm or a URL"),
        ([SHAPES_VL, "--max-images", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_command_line(arguments: list[str | Path], says: str) -> None:
    assert says in sentence(serve("--port", "0", *arguments))


@pytest.mark.parametrize(
    ("engine", "missing", "says"),
    [
        ("transformers", {"torch"}, "The transformers engine needs torch: pip install 'lensmith[cpu]'"),
        ("lmdeploy", {"lmdeploy"}, "The lmdeploy engine needs lmdeploy: pip install 'lensmith[lmdeploy]'"),
        ("lmdeploy", set(), "The lmdeploy engine needs an NVIDIA GPU"),
        ("vllm", {"vllm"}, "The vllm engine needs vllm: pip install vllm"),
        ("vllm", set(), "The vllm engine needs an NVIDIA GPU"),
    ],
)
def test_an_engine_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, engine: str, missing: set[str], says: str
) -> None:
    monkeypatch.setattr(launch, "installed", lambda module: module not in missing)
    monkeypatch.setattr(launch, "has_gpu", lambda: False)
    assert says in sentence(serve(SHAPES_VL, "--engine", engine, "--port", "0"))


@pytest.mark.parametrize(
    ("gpu", "lmdeploy", "chosen"),
    [(True, True, "lmdeploy"), (True, False, "transformers"), (False, True, "transformers")],
)
def test_the_default_engine(monkeypatch: pytest.MonkeyPatch, gpu: bool, lmdeploy: bool, chosen: str) -> None:
    monkeypatch.setattr(launch, "installed", lambda module: lmdeploy or module != "lmdeploy")
    monkeypatch.setattr(launch, "has_gpu", lambda: gpu)
    assert launch.choose(None).name == chosen


def test_help_shows_every_limit_with_its_default() -> None:
    help = serve("--help").output
    for text in ("--max-body-bytes", "33554432", "--max-images", "--engine-timeout", "600.0"):
        assert text in help


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--engine-arg", "server-port=1"), "server-port is the gateway's own part"),
        (("--engine-arg", "nonsense"), "KEY=VALUE"),
        (("--engine-arg", "a=1", "--engine-arg", "a=2"), "each key once"),
        (("--engine-arg", "../x=1"), "is not the name of an engine's option"),
        (("--adapters", "name"), "NAME=PATH"),
        (("--adapters", "x=/nowhere", "--engine", "transformers"), "/nowhere has no adapter_config.json"),
    ],
)
def test_engine_arguments_and_adapters_that_cannot_be_given(options: tuple[str, ...], told: str) -> None:
    assert told in sentence(serve(SHAPES_VL, "--port", "0", *options))


def test_what_is_for_an_engine_started_here_is_refused_for_a_url() -> None:
    for option, value in (("--engine-arg", "tp=2"), ("--adapters", "x=y")):
        said = sentence(serve("--engine", "http://127.0.0.1:1", option, value, "--port", "0"))
        assert f"{option} is for an engine that is started here" in said
