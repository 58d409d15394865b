from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from finetune.errors import FinetuneError
from finetune.recipe.load import load_recipe, make_recipe, recipe_problems, save_recipe
from finetune.recipe.schema import Recipe


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_overrides_are_yaml_and_win(tmp_path: Path) -> None:
    path = write(tmp_path, "model_name_or_path: m\nlora_rank: 4\n")
    recipe = load_recipe(path, ["lora_rank=16", "learning_rate=1e-3", "fp16=true", "adapter_name_or_path=null"])
    assert (recipe.lora_rank, recipe.learning_rate, recipe.fp16) == (16, 1e-3, True)
    assert recipe.alpha == 32


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model_name_or_path: m\nlora_rnk: 4\n", r"line 2, lora_rnk: unknown key; did you mean lora_rank\?"),
        ("model_name_or_path: m\nzzz: 4\n", r"line 2, zzz: unknown key; remove it"),
        ("model_name_or_path: m\ndebug: true\n", r"line 2, debug: this LLaMA-Factory key is not supported yet"),
        ("model_name_or_path: m\nlr_scheduler_type: cosin\n", r"'cosin' is not supported; did you mean cosine\?"),
        ("model_name_or_path: m\nlora_rank: many\n", r"line 2, lora_rank: .*integer.*'many'"),
        ("model_name_or_path: m\nlearning_rate: -1\n", r"learning_rate: .*greater than 0.*-1"),
        ("model_name_or_path: m\nfp16: true\nbf16: true\n", "fp16 and bf16 are both true"),
        ("model_name_or_path: m\nneat_packing: true\nflash_attn: disabled\n", "packing needs PyTorch's attention"),
        ("model_name_or_path: m\npacking: true\nneftune_noise_alpha: 5\n", "packing does not go with neftune"),
        ("model_name_or_path: m\nseed: 1\nseed: 2\n", "line 3, seed: this key is already set above"),
        ("model_name_or_path: m\nfinetuning_type: oft\n", r"'oft' is not supported"),
        ("model_name_or_path: m\nuse_unsloth: true\n", "True is not supported"),
        ("model_name_or_path: m\neval_strategy: steps\n", "eval_strategy steps needs val_size or eval_dataset"),
        ("model_name_or_path: m\nload_best_model_at_end: true\n", "load_best_model_at_end needs eval_strategy"),
        ("model_name_or_path: m\nval_size: 2.5\n", "neither a share below 1 nor a number of rows"),
        ("model_name_or_path: m\nval_size: 0.1\neval_dataset: d\n", "val_size and eval_dataset are both set"),
        ("lora_rank: 4\n", "model_name_or_path: the recipe lacks this key"),
        ("- a\n- b\n", "list of `key: value` lines"),
        ("a: [\n", "line 2: not YAML"),
        ("", "list of `key: value` lines"),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(FinetuneError, match=complaint):
        load_recipe(write(tmp_path, text))


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError) as caught:
        load_recipe(write(tmp_path, "model_name_or_path: m\nlora_rnk: 4\nseeed: 1\n"))
    assert len(caught.value.message.splitlines()) == 2


@pytest.mark.parametrize("override", ["lora_rank", "=4", "lora_rank=[", "lora_rnk=3"])
def test_a_wrong_override_is_explained(tmp_path: Path, override: str) -> None:
    with pytest.raises(FinetuneError, match=r"key=value|not YAML|did you mean"):
        load_recipe(write(tmp_path, "model_name_or_path: m\n"), [override])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FinetuneError, match=r"nowhere\.yaml does not exist"):
        load_recipe("nowhere.yaml")


def test_the_old_name_of_bitsandbytes_means_bnb() -> None:
    assert make_recipe({"model_name_or_path": "m", "quantization_method": "bitsandbytes"}).quantization_method == "bnb"


PUBLISHED = Path(__file__).parent / "published"


@pytest.mark.parametrize(
    ("name", "warnings"),
    [
        ("train_openeqa", ["quantization_method: bitsandbytes is read as bnb"]),
        ("eval_openeqa", ["temperature: 0.2, top_p: 1.0 would sample"]),
        ("merge_openeqa", []),
    ],
)
def test_published_recipes_are_accepted_with_their_warnings(name: str, warnings: list[str]) -> None:
    recipe = load_recipe(PUBLISHED / f"{name}.yaml")
    assert len(recipe.warnings) == len(warnings)
    assert all(found.startswith(expected) for found, expected in zip(recipe.warnings, warnings, strict=True))


def test_the_saved_recipe_is_the_recipe(tmp_path: Path) -> None:
    recipe = make_recipe({"model_name_or_path": "m", "quantization_bit": 4, "warmup_ratio": 0.1})
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text()).keys() == Recipe.model_fields.keys()


def test_every_key_is_described() -> None:
    assert all(field.description for field in Recipe.model_fields.values())


def test_problems_are_found_by_key() -> None:
    wrong = {"model_name_or_path": "m", "lora_rank": 0, "learning_rte": 1, "optim": "lion", "val_size": 0.5}
    found = recipe_problems(wrong)
    assert found["lora_rank"] == "input should be greater than or equal to 1, not 0."
    assert found["learning_rte"] == "unknown key; did you mean learning_rate?"
    assert found["optim"].startswith("'lion' is not supported")
    assert "val_size" not in found
    together = recipe_problems({"model_name_or_path": "m", "eval_strategy": "epoch"})
    assert together == {"": "eval_strategy epoch needs val_size or eval_dataset."}
    assert recipe_problems({"model_name_or_path": "m"}) == {}
