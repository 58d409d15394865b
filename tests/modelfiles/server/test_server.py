"""`push` and `verify` against a server that answers as the recorded Ollama did, and against a real one if there is."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from modelfiles.cli.group import modelfile
from modelfiles.server.client import OllamaClient, OllamaError
from modelfiles.server.probe import encoded_image
from tests.support.modelfiles.fake_ollama import EXCHANGES, FakeOllama, running
from tests.support.modelfiles.model_folders import make_folder, write_json
from tests.support.paths import SHAPES_VL

LIVE = os.environ.get("OLLAMA_HOST", "")
# What the stage's config.json says, as /api/show shows it.
SHAPE = {"qwen3vl.block_count": 2, "qwen3vl.embedding_length": 64}
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
        server.show["model_info"] = {**server.show["model_info"], **SHAPE}
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
    assert run("generate", SHAPES_VL, "-o", tmp_path / "stage", "--quantize", "q4_k_m").exit_code == 0
    assert run("push", tmp_path / "stage", "api-ok", "--server", ollama.url).exit_code == 0
    request = ollama.requests[-1]
    assert request["quantize"] == "Q4_K_M"
    assert request["template"].startswith("{{- if .Tools }}")
    assert "modelfile.lock.json" not in request["files"]


def test_no_server_is_one_sentence() -> None:
    with pytest.raises(OllamaError, match=r"no Ollama answers at 127\.0\.0\.1:9"):
        OllamaClient("127.0.0.1:9").version()
    with pytest.raises(OllamaError, match="not the address of a server"):
        OllamaClient("http://:x").version()


def verify(stage: Path, url: str) -> dict[str, bool]:
    result = run("verify", stage, "api-ok", "--server", url, "--json")
    checks = {check["name"]: check["ok"] for check in json.loads(result.output)}
    assert result.exit_code == (0 if all(checks.values()) else 1)
    return checks


def test_verify_asks_a_server_about_everything_that_matters(ollama: FakeOllama, stage: Path) -> None:
    checks = verify(stage, ollama.url)
    # The recorded model used the renderer, whose blank after images is known.
    assert [name for name, ok in checks.items() if not ok] == []
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
    shutil.copytree(SHAPES_VL, path)
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
    assert run("generate", SHAPES_VL, "-o", tmp_path / "stage").exit_code == 0
    result = run("push", tmp_path / "stage", NAME, "--server", LIVE)
    assert result.exit_code == 0, result.output
    result = run("verify", tmp_path / "stage", NAME, "--server", LIVE)
    assert result.exit_code == 0, result.output


@live
def test_a_real_ollama_refuses_the_raw_folder_and_takes_its_stage(tmp_path: Path) -> None:
    model = saved_by_transformers_5(tmp_path / "model")
    (model / "Modelfile").write_text("FROM .\n")
    assert "open preprocessor_config.json" in run("push", model, NAME, "--server", LIVE).output
    shutil.copy(SHAPES_VL / "preprocessor_config.json", model)
    assert run("push", model, NAME, "--server", LIVE).exit_code == 1
    assert run("generate", model, "-o", tmp_path / "stage").exit_code == 0
    result = run("push", tmp_path / "stage", NAME, "--server", LIVE)
    assert result.exit_code == 0, result.output


@live
def test_a_real_ollama_holds_eight_images_only_with_our_num_ctx(tmp_path: Path) -> None:
    assert run("generate", SHAPES_VL, "-o", tmp_path / "stage").exit_code == 0
    assert run("push", tmp_path / "stage", NAME, "--server", LIVE).exit_code == 0
    # Neighbouring images of equal size are taken for one in some versions, unless a blank keeps them apart.
    message = {"role": "user", "content": "[img] " * 8 + "Colours?", "images": [encoded_image(0)] * 8}
    server = OllamaClient(LIVE)
    assert server.chat(NAME, [message], options={"num_predict": 1})["prompt_eval_count"] > 8 * 1024
    with pytest.raises(OllamaError, match="context size"):
        server.chat(NAME, [message], options={"num_predict": 1, "num_ctx": 4096})


QUESTION = "What is in this picture?"


def likeliest_by_transformers(folder: Path, kind: int | None) -> list[float]:
    """The log-probabilities of the five likeliest first tokens; pictures are 1024 x 1024, as Ollama has them.

    Ollama prints special tokens as "", so their texts are no keys.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    images = None
    if kind is not None:
        images = [Image.open(io.BytesIO(base64.b64decode(encoded_image(kind, 1024))))]
        processor.image_processor.size = {"shortest_edge": 1024 * 1024, "longest_edge": 1024 * 1024}
    content = [*([{"type": "image"}] if images else []), {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=images, return_tensors="pt")
    with torch.no_grad():
        values, _ = model(**inputs).logits[0, -1].log_softmax(-1).topk(5)
    return [float(value) for value in values]


def likeliest_by_ollama(kind: int | None) -> list[float]:
    images = {} if kind is None else {"images": [encoded_image(kind, 1024)]}
    options = {"temperature": 0, "num_predict": 1}
    message = {"role": "user", "content": QUESTION, **images}
    answer = OllamaClient(LIVE).chat(NAME, [message], options=options, logprobs=True, top_logprobs=5)
    return sorted((entry["logprob"] for entry in answer["logprobs"][0]["top_logprobs"]), reverse=True)


@pytest.mark.parametrize(("kind", "within"), [(None, 1e-2), (0, 2e-2), (1, 2e-2)], ids=["text", "red", "stripes"])
def test_log_probabilities_of_a_real_ollama_are_those_of_transformers(
    tmp_path: Path, kind: int | None, within: float
) -> None:
    expected = likeliest_by_transformers(SHAPES_VL, kind)
    assert len(expected) == 5
    if not LIVE:
        pytest.skip("OLLAMA_HOST names no server")
    assert run("generate", SHAPES_VL, "-o", tmp_path / "stage").exit_code == 0
    assert run("push", tmp_path / "stage", NAME, "--server", LIVE).exit_code == 0
    assert likeliest_by_ollama(kind) == pytest.approx(expected, abs=within)


def tiny_qwen2_5_vl(path: Path) -> Path:
    """A random Qwen2.5-VL as transformers 5 saves it, with the example model's tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ids = json.loads((SHAPES_VL / "config.json").read_text())
    special = {key: ids[key] for key in ids if key.endswith("_token_id")}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 16384},
            **{key: ids["text_config"][key] for key in ("bos_token_id", "eos_token_id")},
            **{"rope_parameters": rope, "rope_scaling": rope, "tie_word_embeddings": False},
        },
        vision_config={
            **{"depth": 2, "hidden_size": 64, "out_hidden_size": 128, "num_heads": 2, "intermediate_size": 128},
            **{"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]},
        },
        tie_word_embeddings=False,
        **special,
    )
    torch.manual_seed(0)
    transformers.Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json"):
        shutil.copy(SHAPES_VL / name, path)
    write_json(
        path / "preprocessor_config.json",
        {
            **{
                "min_pixels": 802816,
                "max_pixels": 12845056,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
            },
            **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "Qwen2VLImageProcessor"},
        },
    )
    return path


def test_a_real_ollama_answers_with_a_qwen2_5_vl_that_transformers_5_saved(tmp_path: Path) -> None:
    model = tiny_qwen2_5_vl(tmp_path / "model")
    assert "MF206" in run("doctor", model).output
    assert run("generate", model, "-o", tmp_path / "stage").exit_code == 0
    assert run("doctor", tmp_path / "stage", "--images-per-request", 1).exit_code == 0
    if not LIVE:
        pytest.skip("OLLAMA_HOST names no server")
    result = run("push", tmp_path / "stage", NAME, "--server", LIVE)
    assert result.exit_code == 0, result.output
    message = {"role": "user", "content": QUESTION, "images": [encoded_image(0)]}
    assert OllamaClient(LIVE).chat(NAME, [message], options={"num_predict": 4})["prompt_eval_count"] > 1000
