"""`lensmith plan serve --for SERVER`: the line that serves a model as it was trained."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from lensmith import main
from tests.support.modelfiles.model_folders import edit_json, make_folder
from tests.support.paths import SHAPES_VL


def plan(model: Path, server: str, *options: object) -> list[str]:
    result = CliRunner().invoke(main, ["plan", "serve", str(model), "--for", server, *map(str, options)])
    assert result.exit_code == 0, result.output
    return shlex.split(result.output)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_llama_server_gets_the_tokens_of_training() -> None:
    command = plan(SHAPES_VL, "llama-server", "--image-size", "64x64")
    assert command[:5] == ["llama-server", "-m", "model.gguf", "--mmproj", "mmproj.gguf"]
    assert (option(command, "--image-min-tokens"), option(command, "--image-max-tokens")) == ("4", "64")
    assert int(option(command, "-c")) % 1024 == 0


@pytest.mark.parametrize(
    ("server", "limits", "context"),
    [("vllm", "--mm-processor-kwargs", "--max-model-len"), ("sglang", "--mm-process-config", "--context-length")],
)
def test_python_servers_get_the_pixels_and_the_template(server: str, limits: str, context: str, tmp_path: Path) -> None:
    model = make_folder(tmp_path / "my model")
    command = plan(model, server, "--images", 3, "--session-len", 8192)
    assert str(model) in command
    given = json.loads(option(command, limits))
    assert given.get("image", given) == {"min_pixels": 65536, "max_pixels": 16777216}
    assert option(command, context) == "8192"
    assert option(command, "--chat-template") == str(model / "chat_template.jinja")
    if server == "vllm":
        assert json.loads(option(command, "--limit-mm-per-prompt")) == {"image": 3}


@pytest.mark.parametrize("server", ["lmdeploy", "vllm", "sglang", "ollama"])
def test_the_path_is_printed_as_it_was_given(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["plan", "serve", "model", "--for", server, "--gpu", "t4"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert " model " in " ".join(line for line in lines if not line.startswith("Engine for this card"))
    assert str(tmp_path) not in result.output


def test_ollama_is_installed() -> None:
    command = plan(SHAPES_VL, "ollama")
    assert command[:3] == ["lensmith", "modelfile", "install"]
    assert option(command, "--name") == "shapes-vl"


def test_a_folder_of_any_name_gets_one_that_ollama_takes(tmp_path: Path) -> None:
    assert option(plan(make_folder(tmp_path / "Größe: v1"), "ollama"), "--name") == "gr-e-v1"


def test_the_context_holds_the_images_and_ends_with_the_model(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model")
    one, four = (int(option(plan(model, "vllm", "--images", n), "--max-model-len")) for n in (1, 4))
    assert four - one == 3 * 1024
    many = int(option(plan(model, "vllm", "--images", 500), "--max-model-len"))
    assert many == json.loads((model / "config.json").read_text())["text_config"]["max_position_embeddings"]


def test_an_unknown_architecture_wants_the_context_said(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model")
    edit_json(model / "config.json", architectures=["UnknownForConditionalGeneration"])
    result = CliRunner().invoke(main, ["plan", "serve", str(model), "--for", "vllm"])
    assert result.exit_code == 1
    assert "give --session-len" in result.output
    assert option(plan(model, "vllm", "--session-len", 4096), "--max-model-len") == "4096"
