"""The GGUF routes: the converter is run, the pair is tried in llama.cpp, adapters are converted without a merge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelfiles.cli.group import modelfile
from modelfiles.folder.gguf_header import GgufError, read_gguf_metadata
from modelfiles.language.grammar import parse
from modelfiles.server.probe import encoded_image
from modelfiles.staging.gguf import can_try, try_pair
from tests.support.modelfiles.model_folders import make_folder, write_json, write_safetensors
from tests.support.paths import GOLDENS, SHAPES_VL

TINY = GOLDENS / "tiny_gguf"  # a random Qwen3-VL, converted by llama.cpp's convert_hf_to_gguf.py
LLAMA_CPP = os.environ.get("LLAMA_CPP", "")
needs_llama_cpp = pytest.mark.skipif(not can_try(), reason="xllamacpp comes with the dependency group gguf")


def run(*args: object) -> Result:
    return CliRunner().invoke(modelfile, [str(arg) for arg in args])


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Path:
    """A checkout whose converter hands out the tiny pair and writes down how it was called."""
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    (checkout / "convert_hf_to_gguf.py").write_text(
        "import pathlib, shutil, sys\n"
        f"tiny, log = {str(TINY)!r}, {str(tmp_path / 'calls')!r}\n"
        "print(*sys.argv[1:], file=open(log, 'a'))\n"
        "name = 'mmproj.gguf' if '--mmproj' in sys.argv else 'model.gguf'\n"
        "shutil.copy(pathlib.Path(tiny, name), sys.argv[sys.argv.index('--outfile') + 1])\n"
    )
    (checkout / "convert_lora_to_gguf.py").write_text(
        "import sys\nopen(sys.argv[sys.argv.index('--outfile') + 1], 'wb').write(b'GGUF')\n"
    )
    return checkout


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    base = make_folder(tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": str(base)})
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    write_safetensors(folder / "adapter_model.safetensors", {name: [8, 64]})
    return folder


def test_reads_the_metadata_of_a_real_pair() -> None:
    model, projector = (read_gguf_metadata(TINY / name) for name in ("model.gguf", "mmproj.gguf"))
    assert model["general.architecture"] == "qwen3vl"
    assert model["qwen3vl.embedding_length"] == projector["clip.vision.projection_dim"] == 64
    assert projector["general.type"] == "mmproj"


@pytest.mark.parametrize(
    "data", [b"", b"GGUF", b"GGML" * 9, b"GGUF" + b"\xff" * 40, b"GGUF\x03" + b"\0" * 11 + b"\x05" * 20]
)
def test_refuses_a_broken_gguf(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(GgufError):
        read_gguf_metadata(tmp_path / "x.gguf")


@needs_llama_cpp
def test_an_image_changes_the_answer_of_the_pair() -> None:
    sees, seen = try_pair(TINY / "model.gguf", TINY / "mmproj.gguf")
    assert sees, seen
    assert "log-probabilities" in seen


@needs_llama_cpp
def test_a_pair_that_does_not_see_is_found_out(tmp_path: Path) -> None:
    data = (TINY / "mmproj.gguf").read_bytes()
    (tmp_path / "mmproj.gguf").write_bytes(data[:-200_000] + bytes(200_000))  # weights of zero: every image is the same
    sees, seen = try_pair(TINY / "model.gguf", tmp_path / "mmproj.gguf")
    assert not sees
    assert "log-probabilities" in seen


@needs_llama_cpp
def test_a_broken_pair_is_a_finding_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "mmproj.gguf").write_bytes((TINY / "mmproj.gguf").read_bytes()[:5000])
    sees, seen = try_pair(TINY / "model.gguf", tmp_path / "mmproj.gguf")
    assert not sees
    assert "could not run the pair" in seen
    assert "exit status" in seen


@needs_llama_cpp
def test_generate_converts_and_tries_the_pair(llama_cpp: Path, tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model")
    result = run("generate", model, "-o", tmp_path / "stage", "--route", "gguf", "--llama-cpp", llama_cpp)
    assert result.exit_code == 0, result.output
    assert "an image changes the answer" in result.output
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [("--mmproj" in call, str(model) in call) for call in calls] == [(False, True), (True, True)]
    doctor = run("doctor", tmp_path / "stage", "--images-per-request", 1)
    assert doctor.output == "no findings\n"
    (tmp_path / "stage" / "mmproj.gguf").unlink()
    assert "MF309" in run("doctor", tmp_path / "stage").output


def test_without_a_checkout_generate_writes_the_script(tmp_path: Path, llama_cpp: Path) -> None:
    model = make_folder(tmp_path / "my model; rm -rf $HOME", "qwen2_vl")
    result = run("generate", model, "-o", tmp_path / "stage")
    assert "convert-to-gguf.sh" in result.output
    done = subprocess.run(
        ["sh", tmp_path / "stage" / "convert-to-gguf.sh"], env={**os.environ, "LLAMA_CPP": str(llama_cpp)}, check=False
    )
    assert done.returncode == 0
    assert str(model) in (tmp_path / "calls").read_text()
    assert (tmp_path / "stage" / "mmproj.gguf").exists()


def test_a_converter_that_fails_leaves_nothing_behind(tmp_path: Path, llama_cpp: Path) -> None:
    (llama_cpp / "convert_hf_to_gguf.py").write_text(
        "raise NotImplementedError('BPE pre-tokenizer was not recognized')"
    )
    args = ("generate", make_folder(tmp_path / "model"), "-o", tmp_path / "stage", "--route", "gguf", "--llama-cpp")
    assert "BPE pre-tokenizer was not recognized" in run(*args, llama_cpp).output
    assert "has no convert_hf_to_gguf.py" in run(*args, tmp_path).output
    assert not (tmp_path / "stage").exists()


def test_a_package_that_the_converter_lacks_is_named(tmp_path: Path, llama_cpp: Path) -> None:
    converter = (llama_cpp / "convert_hf_to_gguf.py").read_text()
    (llama_cpp / "convert_hf_to_gguf.py").write_text("import no_such_package\n" + converter)
    args = ("generate", make_folder(tmp_path / "model"), "-o", tmp_path / "stage", "--route", "gguf")
    result = run(*args, "--llama-cpp", llama_cpp)
    assert "needs the package 'no_such_package'" in result.output
    assert "--python" in result.output
    (tmp_path / "python").write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "no_such_package.py").touch()
    result = run(*args, "--llama-cpp", llama_cpp, "--python", tmp_path / "python")
    assert (tmp_path / "stage" / "mmproj.gguf").exists(), result.output
    assert "cannot be run" in run(*args, "--llama-cpp", llama_cpp, "--python", tmp_path / "nowhere").output


@needs_llama_cpp
def test_the_output_may_be_relative(llama_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    result = run("generate", "model", "-o", "stage", "--route", "gguf", "--llama-cpp", "llama.cpp")
    assert result.exit_code == 0, result.output
    assert "an image changes the answer" in result.output


def test_a_built_llama_quantize_quantizes_in_the_stage(llama_cpp: Path, tmp_path: Path) -> None:
    tool = llama_cpp / "build" / "bin" / "llama-quantize"
    tool.parent.mkdir(parents=True)
    tool.write_text('#!/bin/sh\n[ "$3" = Q4_K_M ] && printf quantized > "$2"\n')
    tool.chmod(0o755)
    args = ("generate", make_folder(tmp_path / "model"), "-o", tmp_path / "stage", "--route", "gguf", "--llama-cpp")
    result = run(*args, llama_cpp, "--quantize", "q4_k_m")
    assert (tmp_path / "stage" / "model.gguf").read_text() == "quantized"
    assert json.loads((tmp_path / "stage" / "modelfile.lock.json").read_text())["options"]["quantize"] == ""
    assert "ollama create" in result.output or result.exit_code == 1
    assert "-q Q4_K_M" not in result.output, "Ollama does not quantize what is quantized"
    tool.unlink()
    run(*args, llama_cpp, "--quantize", "q4_k_m")
    assert json.loads((tmp_path / "stage" / "modelfile.lock.json").read_text())["options"]["quantize"] == "Q4_K_M"
    tool.write_text("#!/bin/sh\necho no such type >&2; exit 1\n")
    tool.chmod(0o755)
    assert "could not quantize to Q8_0: no such type" in run(*args, llama_cpp, "--quantize", "q8_0").output


def test_an_adapter_goes_without_a_merge(adapter: Path, llama_cpp: Path, tmp_path: Path) -> None:
    args = ("generate", adapter, "-o", tmp_path / "stage", "--route", "adapter-gguf", "--llama-cpp", llama_cpp)
    assert "needs --base" in run(*args).output
    result = run(*args, "--base", "qwen3-vl:2b-instruct")
    assert result.exit_code == 0, result.output
    commands = [command.pair for command in parse((tmp_path / "stage" / "Modelfile").read_bytes())]
    assert commands[:2] == [("model", "qwen3-vl:2b-instruct"), ("adapter", "./adapter.gguf")]
    assert (tmp_path / "stage" / "adapter.gguf").exists()
    assert not (tmp_path / "stage" / "model.safetensors").exists()
    assert "ollama create adapter -f" in result.output, "the base's name would replace the base"


PARITY = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.mmproj.path = sys.argv[1:3]
params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
server = xllamacpp.Server(params)
for request in json.load(sys.stdin):
    answer = server.handle_chat_completions(request)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    print(json.dumps([answer["usage"]["prompt_tokens"], [[entry["id"], entry["logprob"]] for entry in top]]))
"""


@needs_llama_cpp
def test_a_converted_pair_answers_as_transformers_does() -> None:
    """Text and images: the same prompt length, and the five likeliest tokens within 0.02 (16-bit weights)."""
    recorded = json.loads((TINY / "transformers_logprobs.json").read_text())
    requests = []
    for kind in (None, 0, 1):
        url = f"data:image/png;base64,{encoded_image(kind)}" if kind is not None else ""
        image = [{"type": "image_url", "image_url": {"url": url}}] if url else []
        content = [*image, {"type": "text", "text": recorded["question"]}]
        message = {"role": "user", "content": content}
        requests.append({"messages": [message], "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5})
    command = [sys.executable, "-c", PARITY, str(TINY / "model.gguf"), str(TINY / "mmproj.gguf")]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [length for length, _ in answers] == list(recorded["tokens"].values())
    for (_, top), expected in zip(answers, recorded["top"].values(), strict=True):
        assert dict(top) == pytest.approx(dict(expected), abs=0.02)


ASK = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 512, 1, False
if len(sys.argv) > 2:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = sys.argv[2], 1.0
    params.lora_adapters = [adapter]
request = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0, "logprobs": True}
answer = xllamacpp.Server(params).handle_chat_completions(request)
print(answer["choices"][0]["logprobs"]["content"][0]["logprob"])
"""


@needs_llama_cpp
def test_a_converted_adapter_changes_the_answer_of_its_base() -> None:
    def ask(*files: str) -> float:
        command = [sys.executable, "-c", ASK, *(str(TINY / file) for file in files)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    base = ask("model.gguf")
    assert ask("model.gguf") == base
    assert ask("model.gguf", "adapter.gguf") != base


def test_an_adapter_of_the_vision_tower_must_be_merged(adapter: Path, tmp_path: Path) -> None:
    write_safetensors(
        adapter / "adapter_model.safetensors", {"base_model.model.model.visual.blocks.0.lora_A.weight": [2]}
    )
    result = run("generate", adapter, "-o", tmp_path / "stage", "--route", "adapter-gguf", "--base", "b")
    assert "changes the vision tower" in result.output
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": "Qwen/Qwen3-VL-2B-Instruct"})
    write_safetensors(adapter / "adapter_model.safetensors", {"lora": [2]})
    result = run("generate", adapter, "-o", tmp_path / "stage", "--route", "adapter-gguf", "--base", "b")
    assert "is not a local folder" in result.output


@needs_llama_cpp
@pytest.mark.skipif(not LLAMA_CPP, reason="LLAMA_CPP names no llama.cpp checkout")
def test_the_real_converter_makes_a_pair_that_sees(tmp_path: Path) -> None:
    """Its tokenizer check knows published vocabularies only, so the example's is passed off as Qwen2's."""
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    for name in ("conversion", "gguf-py"):
        (checkout / name).symlink_to(Path(LLAMA_CPP, name))
    shutil.copy(Path(LLAMA_CPP, "convert_hf_to_gguf.py"), checkout / "real.py")
    (checkout / "convert_hf_to_gguf.py").write_text(
        "import runpy, sys, pathlib\n"
        "root = str(pathlib.Path(__file__).parent); sys.path[:0] = [root, root + '/gguf-py']\n"
        "from conversion import base\n"
        "def no_sentencepiece(self): raise FileNotFoundError\n"
        "base.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'qwen2'\n"
        "base.TextModel._create_vocab_sentencepiece = no_sentencepiece\n"
        "runpy.run_path(root + '/real.py', run_name='__main__')\n"
    )
    shapes = SHAPES_VL
    result = run("generate", shapes, "-o", tmp_path / "stage", "--route", "gguf", "--llama-cpp", checkout)
    assert result.exit_code == 0, result.output
    assert "an image changes the answer" in result.output
