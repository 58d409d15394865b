"""LLaMA-Factory's keys: accepted where they ask for nothing, refused with advice where they ask for something else."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.errors import FinetuneError
from finetune.recipe.llamafactory import IGNORED, known_defaults, refused_keys
from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe

NOTHING = [
    (key, value)
    for key, defaults in known_defaults().items()
    for value in [*defaults, None, "none", *([False] if True not in defaults else [])]
    if key != "model_name_or_path"
]
REFUSED = [(key, text) for text, keys in refused_keys().items() for key in keys]


def make(**values: Any) -> Recipe:
    return make_recipe({"model_name_or_path": "m"} | values)


def test_every_key_is_accepted_where_it_asks_for_nothing() -> None:
    refused = []
    for key, value in NOTHING:
        # False is a number where a key is one, and no folder or name.
        if value is False and key in Recipe.model_fields and known_defaults()[key] not in ([None], [False]):
            continue
        try:
            make(**{key: value})
        except FinetuneError as error:
            refused.append(f"{key}: {value!r}: {error.message}")
    assert refused == []


def test_every_other_key_says_what_to_do_instead() -> None:
    for key, instead in REFUSED:
        assert instead, key
        with pytest.raises(FinetuneError, match=f"{key}: this LLaMA-Factory key is not supported yet; ") as caught:
            make(**{key: "something"})
        assert instead in caught.value.message


def test_keys_that_change_no_result_are_accepted_at_any_value() -> None:
    make(**dict.fromkeys(IGNORED - Recipe.model_fields.keys(), "anything"))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"stage": "kto"}, r"'kto' is not supported \(choose 'sft' or 'dpo'\): another trainer does .*KTO and PPO"),
        ({"pref_loss": "hinge"}, r"'hinge' is not supported .*: the other losses are not supported"),
        ({"ref_model": "other"}, "ref_model: .* the reference is the model itself without its adapters"),
        ({"pref_bco_weight": 1.0}, "pref_bco_weight: .* stage: dpo learns from preferences with pref_loss"),
        ({"pref_loss": "ipo", "dpo_label_smoothing": 0.1}, "dpo_label_smoothing goes with pref_loss: sigmoid"),
        ({"stage": "dpo", "finetuning_type": "full"}, "which full training has not; set finetuning_type: lora, or"),
        ({"stage": "dpo", "fsdp": "full_shard"}, "fsdp does not go with stage: dpo"),
        ({"quantization_bit": 8}, r"8 is not supported \(choose 4\): 4 bits"),
        ({"flash_attn": "fa2"}, r"'fa2' is not supported .*: PyTorch's own attention"),
        ({"save_safetensors": False}, "save_safetensors: .* checkpoints hold all"),
        ({"skip_special_tokens": False}, "answers are greedy"),
        ({"sortish_sampler": True}, "rows of similar length share a batch instead: group_by_length: true"),
        ({"galore_rank": 32}, "use optim: adamw_torch"),
    ],
)
def test_a_value_that_asks_for_something_else_is_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FinetuneError, match=complaint):
        make(**values)


def test_a_value_that_means_unset_leaves_the_default() -> None:
    recipe = make(quantization_bit=False, cutoff_len=None, lora_dropout="none", evaluation_strategy="no", fsdp="")
    assert (recipe.quantization_bit, recipe.cutoff_len, recipe.lora_dropout, recipe.fsdp) == (None, 2048, 0, None)
    assert make(video_max_pixels=None).video_max_pixels is None
    assert make(evaluation_strategy="steps", val_size=0.1).eval_strategy == "steps"
    assert make(optim="adamw_torch_fused").optim == "adamw_torch"


def test_lists_are_read_as_what_llama_factory_wants_comma_separated() -> None:
    recipe = make(lora_target=["q_proj", "v_proj"], dataset=["a", "b"], report_to=["none"])
    assert (recipe.lora_target, recipe.dataset, recipe.report_to) == ("q_proj,v_proj", "a,b", "none")


# The keys and values of LLaMA-Factory's example recipes for vision-language models, by what they have in common.
MODEL = {"image_max_pixels": 262144, "video_max_pixels": 16384, "trust_remote_code": True}
DATA = {
    "dataset": "mllm_demo,identity,alpaca_en_demo", "template": "qwen2_vl", "cutoff_len": 2048, "max_samples": 1000,
    "overwrite_cache": True, "preprocessing_num_workers": 16, "dataloader_num_workers": 4,
}  # fmt: skip
OUTPUT = {
    "output_dir": "saves", "logging_steps": 10, "save_steps": 500, "plot_loss": True, "overwrite_output_dir": True,
    "save_only_model": False, "report_to": "none",
}  # fmt: skip
TRAIN = {
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 1e-4, "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "ddp_timeout": 180000000,
    "resume_from_checkpoint": None,
}  # fmt: skip
LORA = {"stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all"}
FULL = {
    "stage": "sft", "do_train": True, "finetuning_type": "full", "freeze_vision_tower": True,
    "freeze_multi_modal_projector": True, "freeze_language_model": False,
}  # fmt: skip
EXAMPLES: dict[str, tuple[dict[str, Any], str | None]] = {
    "LoRA": (MODEL | LORA | DATA | OUTPUT | TRAIN, None),
    "LoRA, Qwen3-VL": (MODEL | LORA | DATA | {"template": "qwen3_vl_nothink"} | OUTPUT | TRAIN, None),
    "LoRA, validated": (
        MODEL | LORA | DATA | OUTPUT | TRAIN
        | {"val_size": 0.1, "per_device_eval_batch_size": 1, "eval_strategy": "steps", "eval_steps": 500}, None,
    ),
    "full": (MODEL | FULL | DATA | OUTPUT | TRAIN | {"pad_to_multiple_of": 28}, None),
    "full, DeepSpeed": (
        MODEL | FULL | DATA | OUTPUT | TRAIN | {"deepspeed": "examples/deepspeed/ds_z3_config.json"},
        "use torchrun, with fsdp: full_shard",
    ),
    "LoRA, NPU kernels": (
        MODEL | LORA | DATA | OUTPUT | TRAIN | {"flash_attn": "disabled", "use_v1_kernels": True, "seed": 1234},
        "logits are computed where there are labels only",
    ),
    "LoRA, only the weights saved": (
        MODEL | LORA | DATA | OUTPUT | TRAIN | {"save_only_model": True}, "checkpoints hold all that the run needs",
    ),
    "DPO": (
        MODEL | LORA | {"stage": "dpo", "pref_beta": 0.1, "pref_loss": "sigmoid"} | DATA | OUTPUT | TRAIN, None,
    ),
    "OFT": (
        MODEL | {"stage": "sft", "finetuning_type": "oft", "oft_block_size": 32, "oft_target": "all"} | DATA | TRAIN,
        "OFT adapters are not supported",
    ),
    "merge": (
        {"adapter_name_or_path": "saves", "template": "qwen2_vl", "trust_remote_code": True, "export_dir": "output",
         "export_size": 5, "export_device": "cpu", "export_legacy_format": False}, None,
    ),
    "predict": (
        {"adapter_name_or_path": "saves", "stage": "sft", "do_predict": True, "finetuning_type": "lora",
         "eval_dataset": "identity", "cutoff_len": 2048, "max_samples": 50, "overwrite_cache": True,
         "output_dir": "predict", "predict_with_generate": True, "ddp_timeout": 180000000}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_shapes_of_its_examples_load_or_say_what_to_change(name: str) -> None:
    values, complaint = EXAMPLES[name]
    if complaint is None:
        make(**values)
        return
    with pytest.raises(FinetuneError, match=complaint) as caught:
        make(**values)
    assert len(caught.value.message.splitlines()) == 1


def test_neat_packing_is_packing_whatever_packing_says() -> None:
    """As there, where it is packing whose rows do not see each other."""
    assert make(neat_packing=True).packing
    assert make(packing=False, neat_packing=True).packing
    assert not make(packing=None, neat_packing=False).packing
    assert "counts rows here" in make(packing=True).warnings[0]
