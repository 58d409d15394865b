"""Every rule fires where it should, with its own id, and a healthy folder or Modelfile has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from modelfiles.checks.doctor import check_folder
from modelfiles.checks.rules import RULES, markdown
from modelfiles.cli.group import modelfile
from modelfiles.folder.model_folder import ModelFolder
from tests.support.modelfiles.model_folders import (
    FOLDERS,
    SPECIAL,
    edit_json,
    gguf,
    make_folder,
    write_json,
    write_safetensors,
)
from tests.support.paths import GOLDENS, ROOT, SHAPES_VL, SUPPORT

TUTORIAL_TEMPLATE = json.loads((GOLDENS / "prompts_qwen3vl.json").read_text())["templates"]["seed"]
GOOD_TEMPLATE = (GOLDENS / "qwen_chatml_exact.gotmpl").read_text()
GOOD = f'''FROM .
TEMPLATE """{GOOD_TEMPLATE}"""
PARAMETER repeat_penalty 1.0
PARAMETER num_ctx 16384
PARAMETER stop <|im_end|>
PARAMETER stop <|endoftext|>
'''
# What Ollama makes of the smallest image: a processor that never goes below it loses nothing there.
ENOUGH_PIXELS = 1024 * 32 * 32
END = GOOD.count("\n") + 1  # the line after it


def healthy(path: Path, family: str = "qwen3_vl") -> Path:
    """A folder with the keys of a published checkpoint, which Ollama imports as it is."""
    make_folder(path, family, ENOUGH_PIXELS)
    config = json.loads((path / "config.json").read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"rope_type": "default", **rope}}
    if "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    write_json(path / "config.json", config)
    processor = json.loads((path / "processor_config.json").read_text())["image_processor"]
    write_json(path / "preprocessor_config.json", processor)
    edit_json(path / "tokenizer_config.json", chat_template=(path / "chat_template.jinja").read_text())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return healthy(tmp_path / "model")


def rules(path: Path) -> set[str]:
    return {finding.rule for finding in check_folder(path)}


def tensors(change: Callable[[dict[str, list[int]]], None], **dtypes: str) -> Callable[[Path], None]:
    """A way to break a folder: change its tensors' names and shapes."""

    def apply(path: Path) -> None:
        named = dict(FOLDERS["qwen3_vl"]["tensors"])
        change(named)
        write_safetensors(path / "model.safetensors", named, {k.replace("__", "."): v for k, v in dtypes.items()})

    return apply


def rename(old: str, new: str) -> Callable[[dict[str, list[int]]], None]:
    def change(named: dict[str, list[int]]) -> None:
        for name in [name for name in named if name.startswith(old)]:
            named[new + name[len(old) :]] = named.pop(name)

    return change


def without(part: str) -> Callable[[dict[str, list[int]]], None]:
    def change(named: dict[str, list[int]]) -> None:
        for name in [name for name in named if part in name]:
            del named[name]

    return change


def sizes(path: Path, **size: int) -> None:
    """Other limits of an image's pixels, in both files that hold them."""
    edit_json(path / "preprocessor_config.json", size=size)
    processor = json.loads((path / "processor_config.json").read_text())
    edit_json(path / "processor_config.json", image_processor=processor["image_processor"] | {"size": size})


def small_images(path: Path) -> None:
    sizes(path, shortest_edge=4096, longest_edge=65536)


def tf5(path: Path) -> None:
    """The config as transformers 5 saves it."""
    write_json(path / "config.json", FOLDERS["qwen3_vl"]["config"])


def moe(path: Path) -> None:
    make_folder(path, "qwen3_vl_moe")


def saved_by_transformers_5(path: Path) -> Path:
    return make_folder(path, min_pixels=ENOUGH_PIXELS)


def nested_qwen2_5(path: Path) -> None:
    make_folder(path, "qwen2_5_vl")


def wrong_index(path: Path) -> None:
    names = dict.fromkeys(FOLDERS["qwen3_vl"]["tensors"], "model.safetensors")
    write_json(path / "model.safetensors.index.json", {"weight_map": names | {"ghost": "model.safetensors"}})


def checkpoint_inside(path: Path) -> None:
    (path / "checkpoint-10").mkdir()
    (path / "checkpoint-10" / "model.safetensors").touch()


def missing_shard(path: Path) -> None:
    write_json(path / "model.safetensors.index.json", {"weight_map": {"a": "model-00002-of-00002.safetensors"}})


def peft(path: Path) -> None:
    (path / "model.safetensors").unlink()
    write_json(path / "adapter_config.json", {})


def link_out(path: Path) -> None:
    (path.parent / "elsewhere").write_text("{}")
    (path / "generation_config.json").unlink()
    (path / "generation_config.json").symlink_to(path.parent / "elsewhere")


LFS = "version https://git-lfs.github.com/spec/v1\n"
EXTRA_LORA = {"model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight": [8, 64]}
ABSMAX = {"model.language_model.layers.0.mlp.up_proj.weight.absmax": [96]}
BROKEN_FOLDERS: dict[str, Callable[[Path], Any]] = {
    "MF101": lambda path: (path / "model.safetensors").unlink(),
    "MF102": peft,
    "MF103": link_out,
    "MF104": lambda path: (path / "config.json").write_text("{"),
    "MF105": lambda path: (path / "model.safetensors").write_text(LFS),
    "MF106": lambda path: (path / "model.safetensors").write_bytes(b"\xff" * 100),
    "MF107": missing_shard,
    "MF201": lambda path: edit_json(path / "config.json", architectures=None),
    "MF202": lambda path: edit_json(path / "config.json", architectures=["Qwen2VLForConditionalGeneration"]),
    "MF203": lambda path: edit_json(path / "config.json", architectures=["BertModel"], vision_config=None),
    "MF204": lambda path: (path / "preprocessor_config.json").unlink(),
    "MF205": tf5,
    "MF206": nested_qwen2_5,
    "MF207": lambda path: (path / "model.safetensors").rename(path / "merged.safetensors"),
    "MF208": tensors(without("layers.1.mlp.up_proj")),
    "MF209": tensors(without("visual.blocks.1.norm2")),
    "MF210": tensors(lambda named: named.update(EXTRA_LORA)),
    "MF211": tensors(lambda named: named.update(ABSMAX)),
    "MF212": tensors(rename("model.", "base_model.model.model.")),
    "MF213": lambda path: write_safetensors(
        path / "model.safetensors", FOLDERS["qwen3_vl"]["tensors"], {"model.language_model.norm.weight": "F64"}
    ),
    "MF214": moe,
    "MF215": tensors(lambda named: named.update({"model.language_model.embed_tokens.weight": [90, 64]})),
    "MF216": lambda path: edit_json(path / "generation_config.json", eos_token_id=[5]),
    "MF217": lambda path: (path / "chat_template.jinja").write_text("{{ nothing("),
    "MF218": checkpoint_inside,
    "MF219": moe,
    "MF220": tensors(without("visual.")),
    "MF221": wrong_index,
    "MF222": small_images,
    "MF223": lambda path: sizes(path, shortest_edge=4096),
    "MF224": lambda path: edit_json(
        path / "preprocessor_config.json", size={"shortest_edge": 2**20, "longest_edge": 2**23}
    ),
}


def test_a_healthy_folder_has_no_finding(model: Path) -> None:
    assert check_folder(model) == []


def test_the_example_model_has_no_fault_but_the_size_of_its_images() -> None:
    """It is trained at 4 tokens an image, where Ollama makes 1024."""
    assert [finding.rule for finding in check_folder(SHAPES_VL)] == ["MF222"]
    assert check_folder(SHAPES_VL, ollama=(0, 29, 0)) == []


@pytest.mark.parametrize("rule", BROKEN_FOLDERS)
def test_a_broken_folder_gets_its_own_rule(rule: str, model: Path) -> None:
    BROKEN_FOLDERS[rule](model)
    assert rule in rules(model)


@pytest.mark.parametrize(
    "rule", ["MF208", "MF209", "MF210", "MF212", "MF216", "MF218", "MF220", "MF221", "MF222", "MF223", "MF224"]
)
def test_a_single_fault_gets_a_single_finding(rule: str, model: Path) -> None:
    BROKEN_FOLDERS[rule](model)
    assert [finding.rule for finding in check_folder(model)] == [rule]


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (rename("model.language_model.", "language_model.model."), "MF212"),
        (rename("model.visual.", "visual."), "MF212"),
        (lambda named: named.update({"model.visual.x.weight": [4, 4]}), None),
    ],
)
def test_old_names_are_recognised(model: Path, names: Any, rule: str | None) -> None:
    tensors(names)(model)
    assert rules(model) == ({rule} if rule else set())


def test_two_ways_to_normalise_pixels_are_named(model: Path) -> None:
    edit_json(model / "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1])
    (finding,) = check_folder(model)
    assert finding.rule == "MF224"
    assert "image_mean is [0.1, 0.1, 0.1] in preprocessor_config.json and [0.5, 0.5, 0.5] in" in finding.message


def test_bitsandbytes_weights_are_recognised_by_their_dtype(model: Path) -> None:
    dtypes = {"model.language_model.layers.0.mlp.up_proj.weight": "U8"}
    write_safetensors(model / "model.safetensors", FOLDERS["qwen3_vl"]["tensors"], dtypes)
    assert rules(model) == {"MF211"}


@pytest.mark.parametrize("family", FOLDERS)
def test_the_table_names_the_tensors_that_transformers_writes(family: str, tmp_path: Path) -> None:
    found = rules(make_folder(tmp_path / "model", family)) & {"MF208", "MF209", "MF220"}
    assert found == set()
    # Gemma 3's vision tower has other names in transformers 5, which Ollama does not map.
    assert ("MF212" in rules(tmp_path / "model")) == (family == "gemma3")


@pytest.mark.parametrize("family", FOLDERS)
def test_each_tensor_of_a_layer_is_missed(family: str, tmp_path: Path) -> None:
    """Dropping any tensor is noticed, but for those that may be tied or are not used by Ollama."""
    if family == "gemma3":
        return  # its names are refused as a whole (above)
    model = make_folder(tmp_path / "model", family)
    (model / "chat_template.jinja").unlink()  # not what this is about, and rendering it takes time
    named = FOLDERS[family]["tensors"]
    for name in named:
        write_safetensors(model / "model.safetensors", {n: s for n, s in named.items() if n != name})
        found = rules(model) & {"MF208", "MF209"}
        assert bool(found) == (name != "lm_head.weight"), name


def test_qwen3_5_is_read_where_transformers_5_writes(tmp_path: Path) -> None:
    assert rules(make_folder(tmp_path / "model", "qwen3_5")) == {"MF204"}, "only preprocessor_config.json is missing"


@pytest.mark.parametrize(("inner", "hidden"), [(32, 64), (64, 64), (48, 96)])
@pytest.mark.parametrize("route", ["safetensors", "gguf"])
def test_experts_saved_by_transformers_5_are_seen_by_either_tensor(
    inner: int, hidden: int, route: str, tmp_path: Path
) -> None:
    """With equal sizes one of the two is square and says nothing."""

    def rules_of(**shapes: list[int]) -> set[str]:
        model = make_folder(tmp_path / "model", "qwen3_vl_moe")
        config = json.loads((model / "config.json").read_text())
        config["text_config"] |= {"moe_intermediate_size": inner, "hidden_size": hidden}
        write_json(model / "config.json", config)
        layer = "model.language_model.layers.0.mlp.experts."
        named = {**FOLDERS["qwen3_vl_moe"]["tensors"], **{layer + name: shape for name, shape in shapes.items()}}
        kept = {name: shape for name, shape in named.items() if ".experts." not in name or name.startswith(layer)}
        write_safetensors(model / "model.safetensors", kept)
        return {finding.rule for finding in check_folder(model, route)}

    assert "MF214" in rules_of(gate_up_proj=[4, 2 * inner, hidden], down_proj=[4, hidden, inner])
    assert "MF214" not in rules_of(gate_up_proj=[4, hidden, 2 * inner], down_proj=[4, inner, hidden])


def test_qwen3_5_moe_is_imported(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model", "qwen3_5", architectures=["Qwen3_5MoeForConditionalGeneration"])
    assert not rules(model) & {"MF202", "MF203", "MF214"}


def test_the_gguf_route_forgives_what_llama_cpp_understands(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model", "qwen2_vl", ENOUGH_PIXELS)
    assert [finding.rule for finding in check_folder(model, "gguf")] == []


# Modelfiles -----------------------------------------------------------------------------------------------------------


ONE_IMAGE = ("--images-per-request", 1)  # several are fused in the newest Ollama, which is another rule


def run(*args: object) -> Result:
    return CliRunner().invoke(modelfile, [str(arg) for arg in args])


def lint(text: str, folder: Path, *args: object) -> list[dict[str, Any]]:
    (folder / "Modelfile").write_bytes(text.encode())
    # 0.30.0 does not fuse neighbouring images yet; test_image_rules.py has that rule.
    result = run("lint", folder / "Modelfile", "--json", "--ollama", "0.30.0", *args)
    findings: list[dict[str, Any]] = json.loads(result.output)["findings"]
    severities = {finding["severity"] for finding in findings}
    assert result.exit_code == (2 if "error" in severities else 1 if severities else 0)
    return findings


def gguf_pair(path: Path, width: int = 64) -> None:
    gguf(path / "model.gguf", general__architecture="qwen3vl", general__type="model", qwen3vl__embedding_length=64)
    gguf(
        path / "mmproj.gguf",
        general__architecture="clip",
        general__type="mmproj",
        clip__vision__projection_dim=width,
    )


PAIR = GOOD.replace("FROM .", "FROM ./model.gguf\nFROM ./mmproj.gguf")
# Rule -> (a Modelfile that breaks it, the line and column to point at, more arguments).
BROKEN_MODELFILES: dict[str, tuple[str, tuple[int, int], list[str]]] = {
    "MF301": ("FROM .\nMESSAGE tool hi\n", (2, 1), []),
    "MF302": (GOOD + "PARAMETER num_ctxx 1\n", (END, 1), []),
    "MF303": (GOOD.replace("num_ctx 16384", "num_ctx 4096.0"), (END - 3, 1), []),
    "MF304": (GOOD + "PARAMETER mirostat 1\n", (END, 1), []),
    "MF305": (GOOD + "SYSTEM be brief # really\n", (END, 1), []),
    "MF306": (GOOD + 'SYSTEM """\n你好\u3000"""\n', (END + 1, 3), []),
    "MF307": (GOOD + "PARAMETER stop \\n\\nUser:\n", (END, 1), []),
    "MF308": (GOOD + "SYSTEM a\nSYSTEM b\n", (END, 1), []),
    "MF309": (GOOD.replace("FROM .", "FROM ./missing"), (1, 1), []),
    "MF310": (GOOD.replace("FROM .", "FROM ./empty"), (1, 1), []),
    "MF311": (GOOD + "RENDERER qwen3-vl\n", (END, 1), []),
    "MF312": (GOOD + "REQUIRES latest\n", (END, 1), []),
    "MF313": (GOOD + "REQUIRES 0.12.7\n", (END, 1), ["--ollama", "0.13.5"]),
    "MF314": (GOOD.replace("{{- if .Tools }}", "{{- if }}"), (2, 1), []),
    "MF315": (GOOD + 'TEMPLATE {{ template "turn" .Messages }}\n', (END, 1), []),
    "MF401": (GOOD.replace(GOOD_TEMPLATE, TUTORIAL_TEMPLATE), (2, 1), []),
    "MF402": (GOOD.replace(".ToolCalls", ".Images"), (2, 1), []),
    "MF403": (GOOD.replace(".ToolCalls", ".Images"), (2, 1), []),
    "MF404": (GOOD.replace("16384", "4096"), (END - 3, 1), []),
    "MF405": (GOOD.replace("PARAMETER repeat_penalty 1.0\n", ""), (1, 1), []),
    "MF406": (GOOD.replace("PARAMETER stop <|endoftext|>\n", ""), (END - 2, 1), []),
    "MF407": (GOOD.replace("PARAMETER num_ctx 16384\n", ""), (1, 1), []),
    "MF408": (GOOD.replace(GOOD_TEMPLATE, "{{ .Prompt }}") + "RENDERER qwen3-vl-thinking\n", (7, 1), []),
    "MF409": (GOOD + "RENDERER qwen3-vl-instruct\n", (2, 1), []),
    "MF410": (GOOD.replace("<|im_start|>user\n{{ .Content }}", "<|im_start|>user\n\n{{ .Content }}"), (2, 1), []),
    "MF411": (GOOD, (1, 1), ["--ollama", "0.33.0"]),
    "MF501": (GOOD.replace("FROM .", "FROM ./model.gguf"), (1, 1), []),
    "MF502": (PAIR + "FROM ./broken.gguf\n", (END + 1, 1), []),
    "MF503": (PAIR, (2, 1), ["--ollama", "0.29.0"]),
    "MF504": (PAIR.replace("./mmproj", "./other-mmproj"), (2, 1), []),
}


def gguf_folder(path: Path) -> Path:
    path.mkdir()
    gguf_pair(path)
    (path / "mmproj.gguf").rename(path / "other-mmproj.gguf")
    gguf_pair(path, width=64)
    gguf(path / "other-mmproj.gguf", general__type="mmproj", clip__vision__projection_dim=32)
    (path / "broken.gguf").write_bytes(b"GGUF\x03")
    (path / "empty").mkdir()
    return path


def test_a_good_modelfile_has_no_finding(model: Path, tmp_path: Path) -> None:
    assert lint(GOOD, model) == []
    assert lint(PAIR, gguf_folder(tmp_path / "gguf")) == []


@pytest.mark.parametrize("rule", BROKEN_MODELFILES)
def test_a_broken_modelfile_gets_its_rule_at_the_right_place(rule: str, model: Path, tmp_path: Path) -> None:
    text, place, args = BROKEN_MODELFILES[rule]
    folder = gguf_folder(tmp_path / "gguf") if rule.startswith("MF5") else model
    (folder / "empty").mkdir(exist_ok=True)
    found = {finding["rule"]: (finding["line"], finding["column"]) for finding in lint(text, folder, *args)}
    assert found.get(rule) == place


TINY_GGUF = SUPPORT / "modelfiles/goldens/tiny_gguf"  # written by llama.cpp's converter, with a ChatML template
GGUF_PAIR = GOOD.replace("FROM .", f"FROM {TINY_GGUF}/model.gguf\nFROM {TINY_GGUF}/mmproj.gguf")
BROKEN_FOR_GGUF = {
    "MF401": GGUF_PAIR.replace(GOOD_TEMPLATE, TUTORIAL_TEMPLATE),
    "MF402": GGUF_PAIR.replace(".ToolCalls", ".Images"),
    "MF403": GGUF_PAIR.replace(".ToolCalls", ".Images"),
    "MF406": GGUF_PAIR.replace("PARAMETER stop <|im_end|>\n", ""),
    "MF408": GGUF_PAIR.replace(GOOD_TEMPLATE, "{{ .Prompt }}") + "RENDERER qwen3-vl-thinking\n",
    "MF410": GGUF_PAIR.replace("<|im_start|>user\n{{ .Content }}", "<|im_start|>user\n\n{{ .Content }}"),
}


def chat_rules(text: str, folder: Path) -> set[str]:
    """The rules about prompts and the end of answers; the tiny projector's image sizes break others."""
    rules = {finding["rule"] for finding in lint(text, folder)}
    return {rule for rule in rules if "MF401" <= rule <= "MF410"}


@pytest.mark.parametrize("source", ["files", "folder"])
def test_the_chat_template_inside_a_gguf_is_what_template_is_compared_with(source: str, tmp_path: Path) -> None:
    text = GGUF_PAIR if source == "files" else GOOD.replace("FROM .", f"FROM {TINY_GGUF}")
    assert chat_rules(text, tmp_path) == set()
    assert "MF410" in chat_rules(text.replace("{{ .Content }}", " {{ .Content }}"), tmp_path)


@pytest.mark.parametrize("rule", BROKEN_FOR_GGUF)
def test_the_rules_about_chats_hold_for_a_gguf(rule: str, tmp_path: Path) -> None:
    assert rule in chat_rules(BROKEN_FOR_GGUF[rule], tmp_path)


def test_every_rule_is_tested_and_documented() -> None:
    assert set(BROKEN_FOLDERS) | set(BROKEN_MODELFILES) == set(RULES)
    assert (ROOT / "docs" / "modelfile-rules.md").read_text() == markdown(), "run python -m modelfiles.checks.rules"


@pytest.mark.parametrize("make", [healthy, saved_by_transformers_5], ids=["published", "transformers 5"])
def test_the_tutorials_modelfile_has_the_six_known_faults(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    text = (
        f'FROM .\n\nTEMPLATE """{TUTORIAL_TEMPLATE}"""\n\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 4096\n'
        "PARAMETER temperature 0.7\n"
    )
    found = [finding["rule"] for finding in lint(text, model)]
    assert sorted(found) == ["MF401", "MF402", "MF403", "MF404", "MF405", "MF406"]


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        ("RENDERER qwen3-vl\n", "MF311", END),
        ("PARAMETER num_ctx 4096.0\n", "MF303", END),
        ("PARAMETER temperature 0.7 # warm\n", "MF303", END),
        ("MESSAGE tool x\n", "MF301", END),
        ("REQUIRES latest\n", "MF312", END),
        ("\nFROM ./missing\n", "MF309", END + 1),
        ("PARSER qwen3vl\n", "MF311", END),
        ("FROM ./missing # the model\n", "MF309", END),
        ("ADAPTER ./none.gguf\n", "MF309", END),
    ],
)
def test_what_fails_late_in_ollama_is_an_error_with_a_line(model: Path, text: str, rule: str, line: int) -> None:
    found = [(f["rule"], f["severity"], f["line"], f["column"]) for f in lint(GOOD + text, model)]
    assert (rule, "error", line, 1) in found


def test_lint_prints_commands_for_programs(model: Path) -> None:
    (model / "Modelfile").write_text("FROM x\nSYSTEM hi\n")
    printed = json.loads(run("lint", model / "Modelfile", "--json", "--images-per-request", 0).output)
    assert printed["commands"] == [{"name": "model", "args": "x"}, {"name": "system", "args": "hi"}]
    assert {finding["rule"] for finding in printed["findings"]} == {"MF405", "MF407"}


def test_lint_speaks_to_people_with_a_place(model: Path) -> None:
    (model / "Modelfile").write_text("FROM x\nNUM_CTX 4\n")
    result = run("lint", model / "Modelfile")
    assert f"{model / 'Modelfile'}:2:1: error MF301" in result.output
    assert result.exit_code == 2


def test_doctor_takes_a_modelfile_and_its_folder_together(model: Path) -> None:
    BROKEN_FOLDERS["MF208"](model)
    (model / "Modelfile").write_text(GOOD.replace("PARAMETER repeat_penalty 1.0\n", ""))
    for path in (model, model / "Modelfile"):
        found = json.loads(run("doctor", path, "--json", *ONE_IMAGE).output)["findings"]
        assert {finding["rule"] for finding in found} == {"MF208", "MF405"}


def test_doctor_exit_codes(model: Path, tmp_path: Path) -> None:
    assert run("doctor", model).exit_code == 0
    BROKEN_FOLDERS["MF218"](model)
    assert run("doctor", model).exit_code == 1
    BROKEN_FOLDERS["MF216"](model)
    assert run("doctor", model).exit_code == 2
    assert run("doctor", tmp_path / "nowhere").exit_code == 2


def test_what_generate_writes_has_no_finding(tmp_path: Path) -> None:
    for family in ("qwen3_vl", "qwen2_5_vl"):
        make_folder(tmp_path / family, family, ENOUGH_PIXELS)
        assert run("doctor", tmp_path / family).exit_code == 2, "the raw folder of transformers 5 is not importable"
        assert run("generate", tmp_path / family, "-o", tmp_path / f"{family}-stage").exit_code == 0
        result = run("doctor", tmp_path / f"{family}-stage", *ONE_IMAGE)
        assert (result.exit_code, result.output) == (0, "no findings\n")


def test_doctor_on_a_gguf_folder_wants_the_mmproj(tmp_path: Path) -> None:
    folder = gguf_folder(tmp_path / "gguf")
    (folder / "Modelfile").write_text(BROKEN_MODELFILES["MF501"][0])
    result = run("doctor", folder)
    assert result.exit_code == 2
    assert "MF501" in result.output


def test_doctor_takes_a_folder_of_gguf_files_with_and_without_a_modelfile(tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    gguf_pair(folder)
    assert run("doctor", folder, *ONE_IMAGE).output == "no findings\n"
    (tmp_path / "Modelfile").write_text(GOOD.replace("FROM .", "FROM ./gguf"))
    assert run("doctor", tmp_path / "Modelfile", *ONE_IMAGE).output == "no findings\n"
    (folder / "mmproj.gguf").unlink()
    assert "MF501" in run("doctor", folder).output
    assert "MF501" in run("doctor", tmp_path / "Modelfile").output


# The other commands that look ---------------------------------------------------------------------------------------


def test_diff_compares_meaning(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('FROM x\nSYSTEM """hi"""\nPARAMETER top_k 1\n')
    (tmp_path / "b").write_text("# same\nparameter top_k 1\nsystem hi\nfrom x\n")
    (tmp_path / "c").write_text("FROM x\nSYSTEM hi\nPARAMETER top_k 2\n")
    assert run("diff", tmp_path / "a", tmp_path / "b").exit_code == 0
    result = run("diff", tmp_path / "a", tmp_path / "c")
    assert result.exit_code == 1
    assert "-TOP_K 1" in result.output
    assert "+TOP_K 2" in result.output
    assert "SYSTEM" not in "".join(line for line in result.output.splitlines() if line[:1] in "+-")


def test_diff_compares_numbers_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("FROM x\nPARAMETER temperature 0.70\nPARAMETER stop 1.0\n")
    (tmp_path / "b").write_text("FROM x\nPARAMETER temperature 7e-1\nPARAMETER stop 1\n")
    output = run("diff", tmp_path / "a", tmp_path / "b").output
    assert "+TEMPERATURE" not in output
    assert "-STOP 1.0" in output, "a stop is a text"


def test_render_shows_the_space_that_the_renderer_adds(model: Path, tmp_path: Path) -> None:
    (model / "Modelfile").write_text("FROM .\nTEMPLATE {{ .Prompt }}\nRENDERER qwen3-vl-instruct\n")
    result = run("render", model / "Modelfile")
    assert result.exit_code == 1
    assert "<|vision_end|>[+ ]a<|im_end|>" in result.output
    assert "tools: equal" in result.output
    write_json(tmp_path / "m.json", [{"role": "user", "content": "What?"}])
    result = run("render", model / "Modelfile", "--messages", tmp_path / "m.json")
    assert result.exit_code == 0
    assert "<|im_start|>user\nWhat?<|im_end|>" in result.output


def test_render_puts_system_and_messages_in_front(model: Path, tmp_path: Path) -> None:
    (model / "Modelfile").write_text(
        f'FROM ollama-name\nTEMPLATE """{GOOD_TEMPLATE}"""\nSYSTEM S\nMESSAGE user a\nMESSAGE assistant b\n'
    )
    write_json(tmp_path / "m.json", [{"role": "user", "content": "c"}])
    turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    expected = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"
    assert expected in run("render", model / "Modelfile", "--messages", tmp_path / "m.json").output
    write_json(tmp_path / "m.json", [{"role": 5}])
    assert "must hold messages" in run("render", model / "Modelfile", "--messages", tmp_path / "m.json").output


def test_inspect_names_what_ollama_will_use(model: Path) -> None:
    output = run("inspect", model).output
    for text in ("qwen3_vl", "0.12.7", "16384 tokens", "takes 1026 tokens", "qwen3-vl-instruct", SPECIAL[2]):
        assert text in output
    assert run("inspect", model / "nowhere").exit_code == 1
    assert ModelFolder.open(model).name == "model"


def test_a_folder_is_no_modelfile(tmp_path: Path) -> None:
    result = run("lint", tmp_path)
    assert result.exit_code == 1
    assert "is a folder: name the Modelfile in it" in result.output
