"""`generate` writes a stage folder that Ollama accepts, says why for every line, and never touches the model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelfiles.checks.doctor import check_folder
from modelfiles.cli.group import modelfile
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.language.grammar import parse
from modelfiles.ollama.architectures import CHATML, find_architecture
from modelfiles.ollama.budget import image_tokens
from modelfiles.ollama.plan import ModelfilePlanError, Options, make_modelfile_plan
from modelfiles.staging import stage as stage_module
from tests.support.modelfiles.model_folders import (
    FOLDERS,
    edit_json,
    make_folder,
    write_json,
    write_raw_safetensors,
    write_safetensors,
)
from tests.support.paths import GOLDENS, SHAPES_VL

# Gemma 3's turns; its own template also moves the system prompt into the first user turn.
GEMMA = """{%- set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}
{%- for m in messages if m.role != 'system' -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' + (system if loop.first else '') -}}
{%- if m.content is string -%}{{- m.content -}}
{%- else -%}{%- for part in m.content -%}{{- part.text or '<start_of_image>' -}}{%- endfor -%}{%- endif -%}
{{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "my-model")


def run(*args: object) -> Result:
    return CliRunner().invoke(modelfile, [str(arg) for arg in args])


def generate(model: Path, out: Path, *args: object) -> dict[str, list[str]]:
    """Runs the command and returns the Modelfile's values by name."""
    result = run("generate", model, "-o", out, *args)
    assert result.exit_code == 0, result.output
    values: dict[str, list[str]] = {}
    for command in parse((out / "Modelfile").read_bytes()):
        values.setdefault(command.name, []).append(command.args)
    return values


def refused(model: Path, tmp_path: Path, *args: object) -> str:
    result = run("generate", model, "-o", tmp_path / "refused", *args)
    assert result.exit_code == 1, result.output
    assert not (tmp_path / "refused").exists(), "something was written"
    assert isinstance(result.exception, SystemExit), "a traceback instead of a sentence"
    return result.output


def snapshot(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_example_model_gets_every_line(tmp_path: Path) -> None:
    values = generate(SHAPES_VL, tmp_path / "stage")
    assert values["model"] == ["."]
    assert values["template"] == [(GOLDENS / "qwen_chatml_exact.gotmpl").read_text()]
    assert values["stop"] == ["<|im_end|>", "<|endoftext|>"]
    assert (values["temperature"], values["top_p"], values["top_k"]) == (["0.7"], ["0.8"], ["20"])
    assert values["repeat_penalty"] == ["1.0"]
    assert values["num_ctx"] == ["11264"]
    assert values["requires"] == ["0.14.0"]
    assert values["num_predict"] == ["2048"]


def test_a_folder_of_transformers_5_is_repaired_beside_itself(model: Path, tmp_path: Path) -> None:
    before = snapshot(model)
    generate(model, tmp_path / "stage")
    assert snapshot(model) == before
    text = json.loads((tmp_path / "stage" / "config.json").read_text())["text_config"]
    assert text["rope_theta"] == 5000000.0
    assert text["rope_scaling"] == {"mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default"}
    assert text["rope_parameters"]["rope_theta"] == 5000000.0, "transformers 5 still finds its own"
    preprocessor = json.loads((tmp_path / "stage" / "preprocessor_config.json").read_text())
    assert preprocessor["size"] == {"shortest_edge": 65536, "longest_edge": 16777216}


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen3_5"])
def test_transformers_reads_the_repaired_config_as_the_original(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="comes with the cpu and finetune extras")
    model = make_folder(tmp_path / "model", family)
    published_experts = {"down_proj": [4, 32, 64], "gate_up_proj": [4, 64, 64]}
    named = {name: published_experts.get(name.rpartition(".")[2], s) for name, s in FOLDERS[family]["tensors"].items()}
    write_safetensors(model / "model.safetensors", named)
    generate(model, tmp_path / "stage", "--prompt", "template")
    original, staged = (transformers.AutoConfig.from_pretrained(path) for path in (model, tmp_path / "stage"))
    wanted, got = original.text_config.to_dict(), staged.text_config.to_dict()
    assert {key: got.get(key) for key in wanted if key != "rope_parameters"} == {
        key: value for key, value in wanted.items() if key != "rope_parameters"
    }
    rope = got["rope_parameters"]
    assert {key: rope.get(key) for key in wanted["rope_parameters"]} == wanted["rope_parameters"]


def test_a_model_that_transformers_saved_loads_from_its_stage(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="comes with the cpu and finetune extras")
    pytest.importorskip("torch", reason="comes with the cpu and finetune extras")
    transformers.AutoModelForImageTextToText.from_pretrained(SHAPES_VL).save_pretrained(tmp_path / "saved")
    transformers.AutoProcessor.from_pretrained(SHAPES_VL).save_pretrained(tmp_path / "saved")
    if not transformers.__version__.startswith("4."):
        assert {finding.rule for finding in check_folder(tmp_path / "saved")} == {"MF204", "MF205", "MF222"}
    generate(tmp_path / "saved", tmp_path / "stage")
    assert [finding.rule for finding in check_folder(tmp_path / "stage")] == ["MF222"], "trained at 4 tokens an image"
    load = transformers.AutoModelForImageTextToText.from_pretrained
    model, loading = load(tmp_path / "stage", output_loading_info=True)
    assert not any(loading.values()), loading
    saved = load(tmp_path / "saved").config.text_config
    assert model.config.text_config.rope_parameters == saved.rope_parameters
    transformers.AutoProcessor.from_pretrained(tmp_path / "stage")


def test_qwen2_5_vl_settings_are_hoisted_to_where_ollama_reads_them(tmp_path: Path) -> None:
    generate(make_folder(tmp_path / "model", "qwen2_5_vl"), tmp_path / "stage")
    config = json.loads((tmp_path / "stage" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert config["hidden_size"] == 64
    assert config["rope_scaling"]["type"] == "mrope"
    assert config["rope_theta"] == 1000000.0
    assert config["vision_config"]["in_chans"] == 3
    assert config["model_type"] == "qwen2_5_vl"


def test_weights_are_hard_links_and_configs_are_copies(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path / "stage")
    weights, linked = model / "model.safetensors", tmp_path / "stage" / "model.safetensors"
    assert linked.stat().st_ino == weights.stat().st_ino
    assert not linked.is_symlink()
    assert (tmp_path / "stage" / "tokenizer.json").stat().st_ino != (model / "tokenizer.json").stat().st_ino


def test_another_device_gets_copies(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(stage_module.os, "link", no_link)
    generate(model, tmp_path / "stage")
    copied = tmp_path / "stage" / "model.safetensors"
    assert copied.read_bytes() == (model / "model.safetensors").read_bytes()
    assert copied.stat().st_nlink == 1


def test_links_in_the_model_are_resolved(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.bin")
    (model / "model.safetensors").symlink_to("weights.bin")
    generate(model, tmp_path / "stage")
    assert not any(path.is_symlink() for path in (tmp_path / "stage").iterdir())
    assert (tmp_path / "stage" / "model.safetensors").stat().st_ino == (model / "weights.bin").stat().st_ino


def test_merged_safetensors_gets_the_name_that_ollama_looks_for(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "merged.safetensors")
    generate(model, tmp_path / "stage")
    assert (tmp_path / "stage" / "model.safetensors").exists()


def test_two_runs_are_byte_identical(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path / "one")
    generate(model, tmp_path / "two")
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    generate(model, tmp_path / "one")
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_the_lock_file_explains_every_line(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path / "stage")
    lock = json.loads((tmp_path / "stage" / "modelfile.lock.json").read_text())
    lines = [(line["name"], line["args"]) for line in lock["lines"]]
    assert lines == [command.pair for command in parse((tmp_path / "stage" / "Modelfile").read_bytes())]
    assert all(line["reason"] for line in lock["lines"])
    assert {change["key"] for change in lock["changes"]} == {"text_config.rope_theta", "text_config.rope_scaling", "*"}
    assert lock["inputs"]["config.json"] == hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    assert str(tmp_path) not in json.dumps(lock)


def test_the_template_equals_the_chat_template_but_for_the_spacing_of_tools(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path / "stage")
    equal = json.loads((tmp_path / "stage" / "modelfile.lock.json").read_text())["prompt_equals_chat_template"]
    assert [name for name, same in equal.items() if not same] == ["tools", "tool result"]
    assert sum(equal.values()) == 8


def test_the_renderer_differs_by_one_space_after_images(model: Path, tmp_path: Path) -> None:
    values = generate(model, tmp_path / "stage", "--prompt", "renderer")
    assert (values["renderer"], values["template"]) == (["qwen3-vl-instruct"], ["{{ .Prompt }}"])
    equal = json.loads((tmp_path / "stage" / "modelfile.lock.json").read_text())["prompt_equals_chat_template"]
    assert [name for name, same in equal.items() if not same] == ["image", "two images", "image, Chinese", "turns"]


def test_thinking_is_seen_in_the_rendered_prompt_not_in_the_name(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "qwen3-vl-instruct-by-name")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(
        template.replace("assistant\\n' -}}{%- endif", "assistant\\n<think>\\n' -}}{%- endif")
    )
    assert generate(model, tmp_path / "stage")["renderer"] == ["qwen3-vl-thinking"]
    assert "use --prompt renderer" in refused(model, tmp_path, "--prompt", "template")


def test_num_ctx_holds_the_images(model: Path, tmp_path: Path) -> None:
    assert int(generate(model, tmp_path / "a")["num_ctx"][0]) >= 8 * 1024 + 2048
    assert generate(model, tmp_path / "b", "--images-per-request", 1)["num_ctx"] == ["4096"]
    # 3840x2160 is 120x68 patches, above the 4096 that llama.cpp allows: 85x48 remain.
    assert generate(model, tmp_path / "c", "--images-per-request", 2, "--image-size", "3840x2160")["num_ctx"] == [
        "10240"
    ]
    # Before 0.30 an image keeps its size: 256x256 is 64 tokens.
    old = generate(model, tmp_path / "d", "--ollama", "0.14", "--image-size", "256x256")
    assert old["num_ctx"] == ["3072"]


@settings(max_examples=300, deadline=None)
@given(width=st.integers(8, 5000), height=st.integers(8, 5000))
def test_image_tokens_follow_transformers_resizing(width: int, height: int) -> None:
    module = "transformers.models.qwen2_vl.image_processing_qwen2_vl"
    qwen = pytest.importorskip(module, reason="comes with the cpu and finetune extras")
    assume(max(width, height) / min(width, height) < 50)
    family = find_architecture("Qwen3VLForConditionalGeneration")
    assert family is not None
    folder = ModelFolder.open(SHAPES_VL)  # patch 16, merge 2, 4,096 to 65,536 pixels
    for ollama, limits in (((0, 29, 0), (4096, 65536)), ((0, 30, 0), (1024 * 32 * 32, 4096 * 32 * 32))):
        rows, columns = qwen.smart_resize(height, width, 32, *limits)
        assert image_tokens(family, folder, (width, height), ollama) == rows * columns // 32 // 32 + 2


def test_num_ctx_never_exceeds_the_model_and_says_so(model: Path, tmp_path: Path) -> None:
    result = run("generate", model, "-o", tmp_path / "stage", "--images-per-request", 40)
    assert "warning: 40 images need 44032 tokens but the model ends at 16384" in result.output
    assert "PARAMETER num_ctx 16384\n" in (tmp_path / "stage" / "Modelfile").read_text()


def test_directives_follow_the_version(model: Path, tmp_path: Path) -> None:
    assert "it needs 0.12.7 or later" in refused(model, tmp_path, "--ollama", "0.12.6")
    assert "requires" not in generate(model, tmp_path / "a", "--ollama", "0.13.0")
    assert "requires" in generate(model, tmp_path / "b", "--ollama", "v0.14.0-rc1")
    assert "it needs 0.30.0 or later" in refused(model, tmp_path, "--route", "gguf", "--ollama", "0.29.0")
    assert generate(model, tmp_path / "c", "--route", "gguf")["model"] == ["./model.gguf", "./mmproj.gguf"]


@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_what_ollama_does_not_import_is_refused_with_the_way_out(family: str, tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model", family)
    assert "use --route gguf" in refused(model, tmp_path, "--route", "safetensors")
    assert generate(model, tmp_path / "stage")["model"] == ["./model.gguf", "./mmproj.gguf"]


def test_weights_that_no_stage_repairs_are_refused(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model")
    named = dict(FOLDERS["qwen3_vl"]["tensors"])
    del named["model.visual.merger.norm.bias"]
    write_safetensors(model / "model.safetensors", named | {"x.lora_A.weight": [4]})
    message = refused(model, tmp_path)
    assert "would not work in Ollama: MF210" in message
    assert "and 1 more" in message
    gemma = make_folder(tmp_path / "gemma", "gemma3")
    (gemma / "chat_template.jinja").write_text(GEMMA)
    assert "MF212" in refused(gemma, tmp_path)
    assert generate(gemma, tmp_path / "stage", "--route", "gguf")["model"] == ["./model.gguf", "./mmproj.gguf"]


def test_a_chat_template_without_tools_is_compared_on_the_rest(model: Path, tmp_path: Path) -> None:
    refuse = "{%- if tools -%}{{- raise_exception('no tools') -}}{%- endif -%}"
    (model / "chat_template.jinja").write_text(refuse + (model / "chat_template.jinja").read_text())
    generate(model, tmp_path / "stage")
    equal = json.loads((tmp_path / "stage" / "modelfile.lock.json").read_text())["prompt_equals_chat_template"]
    assert len(equal) == 8
    assert all(equal.values())
    assert "tools: the chat template refuses" in run("render", tmp_path / "stage" / "Modelfile").output


def test_gemma_3_gets_its_own_template_and_image_cost(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model", "gemma3")
    (model / "chat_template.jinja").write_text(GEMMA)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"][2]["content"] = "<end_of_turn>"
    write_json(model / "tokenizer.json", tokenizer)
    values = generate(model, tmp_path / "stage", "--route", "gguf")
    assert "<start_of_turn>user" in values["template"][0]
    assert values["num_ctx"] == ["5120"]  # 8 x 258 + 2048
    assert "<end_of_turn>" in values["stop"]
    equal = json.loads((tmp_path / "stage" / "modelfile.lock.json").read_text())["prompt_equals_chat_template"]
    assert all(same for name, same in equal.items() if "image" not in name and "tool" not in name and name != "turns")


def huge_header(model: Path) -> None:
    write_raw_safetensors(model / "model.safetensors", b"{}", 11 * 2**30, claimed=10 * 2**30)


def link_out(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").symlink_to("/etc/passwd")


def deep_json(model: Path) -> None:
    (model / "config.json").write_text('{"a":' * 5000 + "1" + "}" * 5000)


def escaping_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")


@pytest.mark.parametrize("harm", [huge_header, link_out, deep_json, escaping_template])
def test_a_hostile_folder_is_refused_and_nothing_is_written(harm: Callable[[Path], None], tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model")
    harm(model)
    refused(model, tmp_path)
    assert os.listdir(tmp_path) == ["model"]


def test_file_names_stay_out_of_the_modelfile(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "model\nADAPTER x\n.safetensors")
    assert "adapter" not in generate(model, tmp_path / "stage")
    assert sorted(p.name for p in (tmp_path / "stage").glob("*.safetensors")) == ["model.safetensors"]


def test_an_unknown_chatml_model_gets_the_general_row(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model", architectures=["InternVLForConditionalGeneration"])
    assert make_modelfile_plan(ModelFolder.open(model), Options()).architecture is CHATML
    assert "use --route gguf" in refused(model, tmp_path, "--route", "safetensors")
    (model / "chat_template.jinja").write_text("USER: {{ messages[0].content }} ASSISTANT:")
    assert "supported are qwen3_vl" in refused(model, tmp_path)
    edit_json(model / "config.json", architectures=None)
    assert "without architectures" in refused(model, tmp_path)


def test_quantization_is_one_of_five(model: Path, tmp_path: Path) -> None:
    assert "F32, F16, Q4_K_S, Q4_K_M, Q8_0" in refused(model, tmp_path, "--quantize", "q5_k_m")
    result = run("generate", model, "-o", tmp_path / "stage", "--quantize", "q4_k_m")
    assert "ollama create my-model -f Modelfile -q Q4_K_M" in result.output


def test_the_hint_names_the_picture_in_the_way_that_ollama_sees(model: Path, tmp_path: Path) -> None:
    result = run("generate", model, "-o", tmp_path / "stage")
    assert " ./picture.png" in result.output


def test_the_hints_are_safe_to_paste(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "Mein Modell; rm -rf ~")
    result = run("generate", model, "-o", tmp_path / "a stage")
    assert f"cd '{tmp_path / 'a stage'}' && ollama create mein-modell-rm--rf -f Modelfile" in result.output


def test_an_answer_that_derails_ends(model: Path, tmp_path: Path) -> None:
    edit_json(model / "generation_config.json", max_new_tokens=77)
    assert generate(model, tmp_path / "own")["num_predict"] == ["77"]
    thinking = make_folder(tmp_path / "thinking")
    template = (thinking / "chat_template.jinja").read_text()
    opened = template.replace(
        "'<|im_start|>assistant\\n' -}}{%- endif", "'<|im_start|>assistant\\n<think>\\n' -}}{%- endif"
    )
    assert opened != template
    (thinking / "chat_template.jinja").write_text(opened)
    assert "num_predict" not in generate(thinking, tmp_path / "thinking-stage"), "thinking may need them"


def test_what_ollama_imports_but_is_not_written_here_is_said(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model", architectures=["Gemma4ForConditionalGeneration"], vision_config=None)
    assert "which Ollama imports since 0.20.0" in refused(model, tmp_path)


def test_a_system_file_loses_the_line_end_that_editors_add(model: Path, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_bytes(b"Be brief.\n\r\n")
    values = generate(model, tmp_path / "stage", "--system-file", tmp_path / "system.txt")
    assert values["system"] == ["Be brief.\n"]


def test_greedy_models_get_temperature_zero(model: Path, tmp_path: Path) -> None:
    edit_json(model / "generation_config.json", do_sample=False, repetition_penalty=1.05)
    values = generate(model, tmp_path / "stage")
    assert values["temperature"] == ["0"]
    assert values["repeat_penalty"] == ["1.05"]
    assert "top_p" not in values


def test_every_stop_is_one_special_token(model: Path, tmp_path: Path) -> None:
    edit_json(model / "generation_config.json", eos_token_id=[100])
    assert generate(model, tmp_path / "stage")["stop"] == ["<|endoftext|>", "<|im_end|>"], "the end of turn is added"
    edit_json(model / "generation_config.json", eos_token_id=[7])
    assert "eos_token_id 7" in refused(model, tmp_path)


def test_the_system_prompt_is_the_files_or_the_templates_own(model: Path, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text('You say "hi".\n中文')
    assert generate(model, tmp_path / "a", "--system-file", tmp_path / "system.txt")["system"] == [
        'You say "hi".\n中文'
    ]
    assert "system" not in generate(model, tmp_path / "b")
    template = (model / "chat_template.jinja").read_text()
    default = (
        "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' -}}{%- endif -%}"
    )
    (model / "chat_template.jinja").write_text(default + template)
    assert generate(model, tmp_path / "c")["system"] == ["Be brief."]
    (tmp_path / "system.txt").write_text("全角\u3000空白")
    assert "U+3000" in refused(model, tmp_path, "--system-file", tmp_path / "system.txt")
    assert "modelfile push" in refused(model, tmp_path, "--system-file", tmp_path / "system.txt")


@pytest.mark.parametrize("token", ["\nADAPTER /etc/passwd", '"""\nADAPTER /etc/passwd', '"\nADAPTER /etc/passwd\n"'])
def test_a_token_cannot_become_a_directive(model: Path, tmp_path: Path, token: str) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"][2]["content"] = token
    write_json(model / "tokenizer.json", tokenizer)
    result = run("generate", model, "-o", tmp_path / "stage")
    if result.exit_code == 0:
        commands = parse((tmp_path / "stage" / "Modelfile").read_bytes())
        assert "adapter" not in {command.name for command in commands}
        assert token in [command.args for command in commands if command.name == "stop"]
    else:
        assert not (tmp_path / "stage").exists()


def test_a_chat_template_cannot_add_a_directive_through_its_system_prompt(model: Path, tmp_path: Path) -> None:
    evil = '{{- \'<|im_start|>system\\nx"""\\nADAPTER /etc/passwd<|im_end|>\\n\' -}}'
    (model / "chat_template.jinja").write_text(evil + (model / "chat_template.jinja").read_text())
    assert 'a line that ends in """' in refused(model, tmp_path)


def test_a_folder_that_is_no_stage_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    result = run("generate", model, "-o", tmp_path / "mine")
    assert result.exit_code == 1
    assert "choose another output folder" in result.output
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    for out in (model, model / "stage", tmp_path):
        assert "choose another output folder" in run("generate", model, "-o", out).output
    assert sorted(os.listdir(tmp_path)) == ["mine", "my-model"]


def test_a_peft_adapter_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {})
    write_safetensors(tmp_path / "adapter_model.safetensors", {"base_model.model.x.lora_A.weight": [2]})
    assert "merge it into its base first" in refused(tmp_path, tmp_path)


def test_plan_is_an_api_too(model: Path) -> None:
    plan = make_modelfile_plan(ModelFolder.open(model), Options(images_per_request=1))
    assert plan.num_ctx == 4096
    assert plan.kv_cache_bytes == 2 * 2 * 2 * 16 * 2 * 4096  # k and v, layers, heads, head size, bytes, tokens
    with pytest.raises(ModelfilePlanError):
        make_modelfile_plan(ModelFolder.open(model), Options(quantize="Q5_0"))
