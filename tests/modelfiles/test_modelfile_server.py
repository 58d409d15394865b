"""`push` and `verify` against a server that answers as the recorded Ollama did, and against a real one if there is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_ollama import EXCHANGES, FakeOllama, running
from model_folders import make_folder, write_json

from modelfiles.cli import modelfile
from modelfiles.ollama_api import OllamaError, Server
from modelfiles.verify import encoded_image

SHAPES = Path(__file__).parents[2] / "examples" / "shapes-vl"
LIVE = os.environ.get("OLLAMA_HOST", "")
MODELFILE = """FROM .
TEMPLATE {{ .Prompt }}
RENDERER qwen3-vl-instruct
PARSER qwen3-vl-instruct
PARAMETER stop <|im_end|>
PARAMETER temperature 0.7
PARAMETER num_ctx 4096
"""


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with running() as server:
        yield server


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = make_folder(tmp_path / "stage")
    write_json(folder / "preprocessor_config.json", {"patch_size": 16})
    (folder / "Modelfile").write_text(MODELFILE)
    return folder


def run(*args: object) -> Result:
    return CliRunner().invoke(modelfile, [str(arg) for arg in args], env={"OLLAMA_HOST": None})


def without_digests(request: dict[str, Any]) -> dict[str, Any]:
    return {**request, "files": sorted(request["files"])}


def test_push_sends_what_the_recorded_client_sent(ollama: FakeOllama, stage: Path, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("你好\u3000世界")
    (stage / "Modelfile").write_text(MODELFILE.replace("TEMPLATE {{ .Prompt }}\n", ""))
    result = run("push", stage, "api-ok", "--server", ollama.url, "--system-file", tmp_path / "system.txt")
    assert result.exit_code == 0, result.output
    assert without_digests(ollama.requests[-1]) == without_digests(EXCHANGES["api-ok"]["request"])
    assert ollama.requests[-1]["system"] == "你好\u3000世界", "U+3000 survives"
    assert "writing manifest" in result.output


def test_push_uploads_each_blob_once(ollama: FakeOllama, stage: Path) -> None:
    assert run("push", stage, "api-ok", "--server", ollama.url).exit_code == 0
    uploads = list(ollama.uploads)
    assert len(uploads) == len(set(uploads)) == 8
    assert run("push", stage, "api-ok", "--server", ollama.url).exit_code == 0
    assert ollama.uploads == uploads


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("api-tf5", "open preprocessor_config.json: no such file or directory"),
        ("api-q2", 'unsupported architecture "Qwen2VLForConditionalGeneration"'),
        ("api-badq", "supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0"),
    ],
)
def test_an_error_inside_http_200_is_a_failure(ollama: FakeOllama, stage: Path, model: str, message: str) -> None:
    result = run("push", stage, model, "--server", ollama.url)
    assert result.exit_code == 1
    assert message in result.output
    assert "created" not in result.output


def test_a_stream_that_ends_without_success_is_a_failure(ollama: FakeOllama, stage: Path) -> None:
    ollama.cut = True
    result = run("push", stage, "api-ok", "--server", ollama.url)
    assert result.exit_code == 1
    assert "ended at 'verifying conversion' without success" in result.output


def test_push_refuses_what_it_can_know_to_fail(ollama: FakeOllama, stage: Path, tmp_path: Path) -> None:
    assert "it can to F32" in run("push", stage, "api-ok", "--server", ollama.url, "--quantize", "q5_k_m").output
    assert "has no Modelfile" in run("push", tmp_path, "m", "--server", ollama.url).output
    (stage / "Modelfile").write_text("FROM ./nothing.gguf\n")
    assert "holds no model" in run("push", stage, "api-ok", "--server", ollama.url).output
    assert ollama.requests == []


def test_push_does_not_follow_links_out_of_the_stage(ollama: FakeOllama, stage: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (stage / "secret.json").symlink_to(tmp_path / "secret.json")
    assert "leaves the folder" in run("push", stage, "api-ok", "--server", ollama.url).output
    assert ollama.requests == []


def test_push_takes_the_quantization_that_generate_recorded(ollama: FakeOllama, tmp_path: Path) -> None:
    assert run("generate", SHAPES, "-o", tmp_path / "stage", "--quantize", "q4_k_m").exit_code == 0
    assert run("push", tmp_path / "stage", "api-ok", "--server", ollama.url).exit_code == 0
    request = ollama.requests[-1]
    assert request["quantize"] == "Q4_K_M"
    assert request["template"].startswith("{{- if .Tools }}")
    assert "modelfile.lock.json" not in request["files"]


def test_no_server_is_one_sentence() -> None:
    with pytest.raises(OllamaError, match=r"no Ollama answers at 127\.0\.0\.1:9"):
        Server("127.0.0.1:9").version()
    with pytest.raises(OllamaError, match="not the address of a server"):
        Server("http://:x").version()


def verify(stage: Path, url: str) -> dict[str, bool]:
    result = run("verify", stage, "api-ok", "--server", url, "--json")
    checks = {check["name"]: check["ok"] for check in json.loads(result.output)}
    assert result.exit_code == (0 if all(checks.values()) else 1)
    return checks


def test_verify_asks_a_server_about_everything_that_matters(ollama: FakeOllama, stage: Path) -> None:
    checks = verify(stage, ollama.url)
    # The recorded model used the renderer, whose space after images is what fails here.
    failed = [name for name, ok in checks.items() if not ok]
    assert failed == ["prompt: image", "prompt: two images", "prompt: image, Chinese", "prompt: turns"]
    assert checks["an image changes the answer"]
    assert checks["num_ctx"]
    assert checks["stops"]


def test_verify_sees_a_model_that_does_not_see(ollama: FakeOllama, stage: Path) -> None:
    ollama.blind = True
    ollama.show |= {"capabilities": ["completion"], "projector_info": None}
    checks = verify(stage, ollama.url)
    for name in ("sees images", "has a projector", "an image costs tokens", "an image changes the answer"):
        assert checks[name] is False


def test_verify_sees_other_parameters(ollama: FakeOllama, stage: Path) -> None:
    text = MODELFILE.replace("4096", "8192") + "PARAMETER stop <|endoftext|>\nREQUIRES 99.0.0\n"
    (stage / "Modelfile").write_text(text)
    checks = verify(stage, ollama.url)
    assert [checks[name] for name in ("num_ctx", "stops", "version")] == [False, False, False]


def test_the_raw_folder_fails_and_its_stage_succeeds(ollama: FakeOllama, tmp_path: Path) -> None:
    """The recorded exchange: what transformers 5 saves, as it is and as `generate` stages it."""
    model = make_folder(tmp_path / "model")
    (model / "Modelfile").write_text("FROM .\n")
    result = run("push", model, "api-tf5", "--server", ollama.url)
    assert "open preprocessor_config.json" in result.output
    assert sorted(ollama.requests[-1]["files"]) == sorted(EXCHANGES["api-tf5"]["request"]["files"])
    assert run("generate", model, "-o", tmp_path / "stage").exit_code == 0
    assert run("push", tmp_path / "stage", "api-ok", "--server", ollama.url).exit_code == 0
    assert sorted(ollama.requests[-1]["files"]) == sorted(EXCHANGES["api-ok"]["request"]["files"])


# Against a real server, named by OLLAMA_HOST -------------------------------------------------------------------------

live = pytest.mark.skipif(not LIVE, reason="OLLAMA_HOST names no server")
NAME = "lensmith-test-shapes-vl"


def saved_by_transformers_5(path: Path) -> Path:
    """The example model with its settings where transformers 5 puts them."""
    shutil.copytree(SHAPES, path)
    config = json.loads((path / "config.json").read_text())
    text = config["text_config"]
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    write_json(path / "config.json", config)
    processor = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").unlink()
    write_json(path / "processor_config.json", {"image_processor": processor})
    return path


@live
def test_a_real_ollama_takes_the_example_model_and_sees_with_it(tmp_path: Path) -> None:
    assert run("generate", SHAPES, "-o", tmp_path / "stage").exit_code == 0
    result = run("push", tmp_path / "stage", NAME, "--server", LIVE)
    assert result.exit_code == 0, result.output
    result = run("verify", tmp_path / "stage", NAME, "--server", LIVE)
    assert result.exit_code == 0, result.output


@live
def test_a_real_ollama_refuses_the_raw_folder_and_takes_its_stage(tmp_path: Path) -> None:
    model = saved_by_transformers_5(tmp_path / "model")
    (model / "Modelfile").write_text("FROM .\n")
    assert "open preprocessor_config.json" in run("push", model, NAME, "--server", LIVE).output
    shutil.copy(SHAPES / "preprocessor_config.json", model)
    assert run("push", model, NAME, "--server", LIVE).exit_code == 1
    assert run("generate", model, "-o", tmp_path / "stage").exit_code == 0
    result = run("push", tmp_path / "stage", NAME, "--server", LIVE)
    assert result.exit_code == 0, result.output


@live
def test_a_real_ollama_holds_eight_images_only_with_our_num_ctx(tmp_path: Path) -> None:
    assert run("generate", SHAPES, "-o", tmp_path / "stage").exit_code == 0
    assert run("push", tmp_path / "stage", NAME, "--server", LIVE).exit_code == 0
    message = {"role": "user", "content": "Colours?", "images": [encoded_image(0)] * 8}
    server = Server(LIVE)
    assert server.chat(NAME, [message], options={"num_predict": 1})["prompt_eval_count"] > 8 * 1024
    with pytest.raises(OllamaError, match="context size"):
        server.chat(NAME, [message], options={"num_predict": 1, "num_ctx": 4096})
