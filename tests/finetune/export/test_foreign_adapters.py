"""Adapters of other tools: what they hold is merged as PEFT merges it and answered with alike, or it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import evaluate
from finetune.export.merge import merge
from finetune.model.base import load_base, old_names_allowed
from finetune.model.folder import open_base
from finetune.recipe.schema import Recipe
from finetune.training.loop import train
from modelfiles.folder.model_folder import ModelFolder
from tests.support.finetune.adapters import CPU, random_adapter
from tests.support.finetune.families import family_folder
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]
DEFAULTS: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*\.(q_proj|v_proj|up_proj)"}


def peft_model(recipe: Recipe, **keys: Any) -> Any:
    """The recipe's base in float32, wrapped by PEFT itself, as if it had been trained a little."""
    torch.manual_seed(1)
    base = load_base(open_base(recipe), recipe, CPU, torch.float32)
    with old_names_allowed():
        model = get_peft_model(base, LoraConfig(**{**DEFAULTS, **keys}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.5 * torch.randn_like(parameter)
            elif "lora_magnitude" in name:
                parameter *= 1 + 0.1 * torch.rand_like(parameter)
    return model


def saved(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def with_adapter(recipe: Recipe, path: Path, tmp_path: Path) -> Recipe:
    return recipe.model_copy(update={"adapter_name_or_path": str(path), "export_dir": str(tmp_path / "merged")})


def answers(recipe: Recipe, folder: Path) -> list[str]:
    evaluate(recipe.model_copy(update={"output_dir": str(folder)}))
    lines = (folder / "generated_predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["predict"] for line in lines]


MERGED: list[dict[str, Any]] = [
    {"use_rslora": True},
    {"use_dora": True},
    {"init_lora_weights": "gaussian"},
    {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 8}, "alpha_pattern": {"up_proj": 3}},
    {"rank_pattern": {"v_proj": 6}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True, "use_dora": True},
]


@pytest.mark.parametrize("keys", MERGED)
def test_pefts_adapters_are_merged_as_peft_merges_them(
    recipe: MakeRecipe, tmp_path: Path, keys: dict[str, Any]
) -> None:
    made = recipe(max_samples=6)
    model = peft_model(made, **keys)
    made = with_adapter(made, saved(model, tmp_path / "adapter"), tmp_path)
    target = merge(made)
    merged, original = load_file(target / "model.safetensors"), load_file(SHAPES_VL / "model.safetensors")
    assert sum(not torch.equal(merged[name], original[name]) for name in merged) == 12
    on_base = answers(made, tmp_path / "on base")
    assert on_base == answers(recipe(max_samples=6, model_name_or_path=str(target)), tmp_path / "of merged")
    assert on_base != answers(recipe(max_samples=6), tmp_path / "bare")
    reference = model.merge_and_unload().state_dict()
    for name, tensor in merged.items():
        spacing = torch.finfo(tensor.dtype).eps * reference[name].abs() + 1e-30
        assert ((reference[name].to(tensor.dtype).float() - tensor.float()).abs() <= spacing).all(), name


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_4"])
def test_a_start_that_changes_the_base_is_refused(recipe: MakeRecipe, tmp_path: Path, start: str) -> None:
    made = recipe()
    made = with_adapter(made, saved(peft_model(made, init_lora_weights=start), tmp_path / "adapter"), tmp_path)
    for work in (merge, evaluate):
        with pytest.raises(FinetuneError, match=f"init_lora_weights '{start}', which changes the base's weights"):
            work(made)


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "what comes next"])
def test_a_start_that_is_not_known_to_leave_the_base_alone_is_refused(
    recipe: MakeRecipe, tmp_path: Path, start: str
) -> None:
    made = with_adapter(recipe(), changed_config(recipe(), tmp_path, init_lora_weights=start), tmp_path)
    with pytest.raises(FinetuneError, match="changes the base's weights before training"):
        merge(made)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_pefts_conversion_of_a_pissa_adapter_is_merged(recipe: MakeRecipe, tmp_path: Path) -> None:
    made = recipe(max_samples=6)
    torch.manual_seed(1)
    base = load_base(open_base(made), made, CPU, torch.float32)
    with old_names_allowed():
        model = get_peft_model(base, LoraConfig(**DEFAULTS, init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    target = merge(with_adapter(made, tmp_path / "adapter", tmp_path))
    merged, reference = load_file(target / "model.safetensors"), model.merge_and_unload().state_dict()
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert (merged[name].float() - reference[name]).norm() < 0.01 * reference[name].norm()


def changed_config(recipe: Recipe, tmp_path: Path, **keys: Any) -> Path:
    path = random_adapter(recipe, tmp_path / "adapter")
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | keys))
    return path


@pytest.mark.parametrize(
    "keys",
    [
        {"alora_invocation_tokens": [1, 2]},
        {"trainable_token_indices": [5]},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"layer_replication": [[0, 2]]},
        {"use_qalora": True},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"a_key_of_the_next_peft": "on"},
        {"rank_pattern": {"(a+)+b": 3}},
        {"bias": "lora_only"},
    ],
)
def test_a_key_that_would_be_passed_over_is_refused_everywhere(
    recipe: MakeRecipe, tmp_path: Path, keys: dict[str, Any]
) -> None:
    made = with_adapter(recipe(), changed_config(recipe(), tmp_path, **keys), tmp_path)
    for work in (merge, evaluate):
        with pytest.raises(FinetuneError, match=rf"adapter_name_or_path: .*{'bias' if 'bias' in keys else min(keys)}"):
            work(made)


@pytest.mark.parametrize("keys", [{"a_key_of_the_next_peft": None}, {"another": {}}, {"use_more": False}])
def test_a_key_that_asks_for_nothing_is_accepted(recipe: MakeRecipe, tmp_path: Path, keys: dict[str, Any]) -> None:
    merge(with_adapter(recipe(), changed_config(recipe(), tmp_path, **keys), tmp_path))


@pytest.mark.parametrize("name", ["non_lora_state_dict.bin", "non_lora_trainables.bin", "vit.safetensors"])
def test_weights_beside_the_adapter_are_refused(recipe: MakeRecipe, tmp_path: Path, name: str) -> None:
    path = random_adapter(recipe(), tmp_path / "adapter")
    (path / "optimizer.pt").write_bytes(b"not a part of the model")
    made = with_adapter(recipe(), path, tmp_path)
    merge(made)
    (path / name).write_bytes(b"trained too")
    for work in (merge, evaluate):
        with pytest.raises(FinetuneError, match=f"holds {name} beside the adapter"):
            work(made)


def test_an_adapter_with_older_names_answers_as_with_todays(recipe: MakeRecipe, tmp_path: Path) -> None:
    """As PEFT saved them under transformers before 4.52; PEFT would warn and answer as the bare base."""
    made = recipe(max_samples=6, model_name_or_path=str(family_folder("qwen2_5_vl", tmp_path / "base")))
    path = random_adapter(made, tmp_path / "adapter", size=0.2)
    today = answers(with_adapter(made, path, tmp_path), tmp_path / "today")
    merged = load_file(merge(with_adapter(made, path, tmp_path)) / "model.safetensors")
    tensors = load_file(path / "adapter_model.safetensors")
    renamed = {name.replace(".model.model.language_model.", ".model.model."): t for name, t in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    config["target_modules"] = sorted({name.rpartition(".")[2] for name in config["target_modules"]})
    (path / "adapter_config.json").write_text(json.dumps(config))
    assert answers(with_adapter(made, path, tmp_path), tmp_path / "older") == today
    assert answers(made, tmp_path / "bare") != today
    again = load_file(merge(with_adapter(made, path, tmp_path)) / "model.safetensors")
    assert all(torch.equal(again[name], merged[name]) for name in merged)


TIED_APART = "ignore:Model has `tie_word_embeddings=True`"  # newer PEFT's warning


@pytest.mark.filterwarnings(TIED_APART)
def test_embeddings_trained_apart_from_a_tied_output_are_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    made = recipe()
    model = peft_model(made, modules_to_save=["embed_tokens"])
    made = with_adapter(made, saved(model, tmp_path / "adapter"), tmp_path)
    for work in (merge, evaluate):
        with pytest.raises(
            FinetuneError, match=r"trained model.language_model.embed_tokens.weight apart, but the base"
        ):
            work(made)


@pytest.mark.filterwarnings(TIED_APART)
def test_embeddings_that_peft_kept_tied_are_merged(recipe: MakeRecipe, tmp_path: Path) -> None:
    """With ensure_weight_tying PEFT writes them twice, the second time as the output that the base's files lack."""
    made = recipe(max_samples=6)
    path = saved(peft_model(made, modules_to_save=["embed_tokens"]), tmp_path / "adapter")
    tensors = load_file(path / "adapter_model.safetensors")
    (embeddings,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors[embeddings] += 0.01 * torch.randn_like(tensors[embeddings])
    tensors["base_model.model.lm_head.weight"] = tensors[embeddings].clone()
    save_file(tensors, path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text()) | {"ensure_weight_tying": True}
    (path / "adapter_config.json").write_text(json.dumps(config))
    made = with_adapter(made, path, tmp_path)
    target = merge(made)
    merged = load_file(target / "model.safetensors")["model.language_model.embed_tokens.weight"]
    assert torch.equal(merged, tensors[embeddings].to(merged.dtype))
    on_base = answers(made, tmp_path / "on base")
    assert on_base == answers(recipe(max_samples=6, model_name_or_path=str(target)), tmp_path / "of merged")
    tensors["base_model.model.lm_head.weight"][-1, -1] += 1
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(FinetuneError, match=r"embeddings and output as one .* holds two that differ"):
        merge(made)


def test_embeddings_trained_here_stay_tied(recipe: MakeRecipe, tmp_path: Path) -> None:
    made = recipe(additional_target="embed_tokens", max_samples=6)
    train(made)
    made = with_adapter(made, tmp_path / "out", tmp_path)
    target = merge(made)
    on_base = answers(made, tmp_path / "on base")
    assert on_base == answers(recipe(max_samples=6, model_name_or_path=str(target)), tmp_path / "of merged")


def test_another_chat_template_is_refused_and_the_same_is_not(recipe: MakeRecipe, tmp_path: Path) -> None:
    path = random_adapter(recipe(), tmp_path / "adapter")
    made = with_adapter(recipe(max_samples=2), path, tmp_path)
    template = str(ModelFolder.open(SHAPES_VL).chat_template)
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    shutil.copyfile(SHAPES_VL / "tokenizer.json", path / "tokenizer.json")
    merge(made)
    (path / "chat_template.jinja").write_text(template + "{{ 'Be brief.' }}")
    for work in (merge, evaluate):
        with pytest.raises(
            FinetuneError, match=r"brings a chat template \(chat_template.jinja\) that is not the base's"
        ):
            work(made)


def test_another_tokenizer_is_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    path = random_adapter(recipe(), tmp_path / "adapter")
    (path / "added_tokens.json").write_text(json.dumps({"<defect>": 9999}))
    with pytest.raises(FinetuneError, match=r"a tokenizer in which '<defect>' is token 9999, in the base's it is none"):
        merge(with_adapter(recipe(), path, tmp_path))


def test_image_limits_are_found_from_checkpoints_other_tools_and_the_recipe(recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe(image_max_pixels=16384, save_steps=2))

    def limit(made: Recipe) -> int:
        return ModelFolder.open(merge(made)).image_pixel_limits[1]

    checkpoint = with_adapter(recipe(), tmp_path / "out/checkpoint-2", tmp_path)
    assert limit(checkpoint) == 16384
    assert limit(checkpoint.model_copy(update={"image_max_pixels": 8192})) == 8192
    foreign = random_adapter(recipe(), tmp_path / "adapter")
    bare = ModelFolder.open(SHAPES_VL).image_pixel_limits
    assert limit(with_adapter(recipe(), foreign, tmp_path)) == bare[1]
    (foreign / "preprocessor_config.json").write_text(json.dumps({"min_pixels": bare[0], "max_pixels": 12544}))
    assert limit(with_adapter(recipe(), foreign, tmp_path)) == 12544


def test_eval_sizes_images_as_the_training_did(recipe: MakeRecipe, tmp_path: Path) -> None:
    """The adapter's limits hold where the recipe sets none, so `eval` of adapter and of merged folder agree."""
    train(recipe(image_max_pixels=4096, max_steps=12, learning_rate=5e-3))
    made = with_adapter(recipe(), tmp_path / "out", tmp_path)
    merged = recipe(model_name_or_path=str(merge(made)))
    assert answers(made, tmp_path / "on base") == answers(merged, tmp_path / "of merged")


@pytest.mark.parametrize("nested", [{"min_pixels": 1024, "max_pixels": 1048576}, {}])
def test_limits_are_written_to_both_processor_files(recipe: MakeRecipe, tmp_path: Path, nested: dict[str, int]) -> None:
    """transformers 5 reads processor_config.json, 4.57 and Ollama preprocessor_config.json."""
    base = tmp_path / "base"
    shutil.copytree(SHAPES_VL, base)
    images = json.loads((base / "preprocessor_config.json").read_text()) | nested
    (base / "processor_config.json").write_text(json.dumps({"processor_class": "X", "image_processor": images}))
    made = recipe(model_name_or_path=str(base), image_max_pixels=16384)
    target = merge(with_adapter(made, random_adapter(made, tmp_path / "adapter"), tmp_path))
    for file in ("preprocessor_config.json", "processor_config.json"):
        config = json.loads((target / file).read_text())
        found = config.get("image_processor", config)
        assert found["size"]["longest_edge"] == 16384
        assert found.get("max_pixels", 16384) == 16384
    assert config["processor_class"] == "X"


def test_a_base_of_transformers_5_gets_the_file_that_others_read(recipe: MakeRecipe, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(SHAPES_VL, base)
    images = json.loads((base / "preprocessor_config.json").read_text())
    (base / "processor_config.json").write_text(json.dumps({"image_processor": images}))
    (base / "preprocessor_config.json").unlink()
    made = recipe(model_name_or_path=str(base))
    target = merge(with_adapter(made, random_adapter(made, tmp_path / "adapter"), tmp_path))
    assert json.loads((target / "preprocessor_config.json").read_text()) == images
