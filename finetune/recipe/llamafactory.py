"""LLaMA-Factory's keys that a recipe of ours has not: accepted where they ask for nothing, else refused with advice.

llamafactory_keys.json holds every key that it knows and its default; this module, what happens to those that `Recipe`
lacks. A key asks for nothing at its default, at null, none or an empty text, and at false unless it is on by default.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from finetune.recipe.schema import Recipe

# Older names of keys that only changed their name.
RENAMED = {"evaluation_strategy": "eval_strategy"}
# Keys about speed, workers and logs, or kept by old files: no value of theirs changes what is trained or scored.
IGNORED = frozenset({
    "buffer_size", "data_shared_file_system", "dataloader_in_order", "dataloader_multiprocessing_context",
    "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_backend",
    "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph", "disable_tqdm",
    "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object", "gradient_checkpointing_kwargs",
    "include_effective_tokens_per_second", "include_num_input_tokens_seen", "include_tokens_per_second", "local_rank",
    "log_level", "log_level_replica", "log_on_each_node", "logging_first_step", "logging_nan_inf_filter",
    "low_cpu_mem_usage", "neat_packing", "offload_folder", "overwrite_cache", "pad_to_multiple_of",
    "preprocessing_batch_size", "print_param_status", "remove_unused_columns", "run_name", "save_on_each_node",
    "skip_memory_metrics", "torch_empty_cache_steps", "use_cache", "use_fast_tokenizer", "use_kv_cache",
    "use_reentrant_gc", "visual_inputs",
})  # fmt: skip
# Values besides the default that ask for what is done anyway.
SAME: dict[str, list[Any]] = {
    "enable_thinking": [False],  # no thinking is ever added to answers
    "gradient_checkpointing": [True],  # the default on a GPU; disable_gradient_checkpointing decides
    "metric_for_best_model": ["loss", "eval_loss"],
    "train_sampling_strategy": ["group_by_length"],  # group_by_length decides
}
PREFERENCES = "stage: dpo learns from preferences with pref_loss: sigmoid, ipo, orpo or simpo; others are not supported"
REFERENCE = "the reference is the model itself without its adapters, or with those of adapter_name_or_path"
OPTIMIZER = "use optim: adamw_torch, or paged_adamw_8bit for less memory"
QUANTISATION = "use quantization_bit: 4 (NF4) for training; a merged model is quantised by the server's own tools"
SERVING = "answers come from transformers, or with `lensmith eval --endpoint URL` from any server"
TOKENS = "the tokenizer stays the model's own; add tokens to the model folder before training"
HUB = "upload the output_dir afterwards: `hf upload OWNER/NAME FOLDER`"
SPREAD = "use torchrun, with fsdp: full_shard where the weights do not fit one GPU"
LOSS = "the loss is cross-entropy over the answers' tokens, averaged over the whole step"
RUNS = "set report_to: wandb, swanlab or trackio, and their own environment variables (such as SWANLAB_API_KEY)"
DTYPE = "set fp16: true or bf16: true, or neither to have it chosen by the GPU"
# What to do instead, by key, or by how keys begin (`galore_*`).
ADVICE: dict[str, str] = {
    **dict.fromkeys(("pref_*", "reward_model*", "ppo_*", "kto_*", "ld_alpha"), PREFERENCES),
    "ref_model*": REFERENCE,
    **dict.fromkeys(("use_galore", "galore_*", "use_apollo", "apollo_*", "use_badam", "badam_*", "use_adam_mini",
                     "use_muon", "adafactor", "optim_args", "optim_target_modules"), OPTIMIZER),
    **dict.fromkeys(("export_quantization_*", "quantization_device_map", "fp8*"), QUANTISATION),
    **dict.fromkeys(("infer_backend", "vllm_*", "sglang_*", "use_kt", "kt_*"), SERVING),
    **dict.fromkeys(("resize_vocab", "split_special_tokens", "add_tokens", "add_special_tokens", "init_special_tokens",
                     "new_special_tokens_config"), TOKENS),
    **dict.fromkeys(("push_to_hub*", "hub_*", "export_hub_model_id"), HUB),
    **dict.fromkeys(("hf_hub_token", "ms_hub_token", "om_hub_token"), "set HF_TOKEN in the environment"),
    **dict.fromkeys(("deepspeed", "fsdp_*", "ray_*", "master_*", "use_mca", "use_hyper_parallel",
                     "hyper_parallel_args", "accelerator_config", "parallelism_config", "mp_parameters"), SPREAD),
    **dict.fromkeys(("use_dft_loss", "use_asft_loss", "asft_alpha", "use_eaft_loss", "eaft_alpha", "moe_aux_loss_coef",
                     "label_smoothing_factor", "average_tokens_across_devices", "ignore_pad_token_for_loss"), LOSS),
    **dict.fromkeys(("use_swanlab", "swanlab_*", "trackio_*", "project"), RUNS),
    **dict.fromkeys(("pure_bf16", "infer_dtype", "upcast_*", "half_precision_backend", "fp16_*", "bf16_full_eval",
                     "tf32"), DTYPE),
    **dict.fromkeys(("sortish_sampler", "length_column_name"),
                    "rows of similar length share a batch instead: group_by_length: true"),
    **dict.fromkeys(("enable_liger_kernel", "use_liger_kernel", "liger_kernel_config", "use_unsloth_gc",
                     "use_v1_kernels", "torch_compile*", "torchdynamo", "jit_mode_eval"),
                    "logits are computed where there are labels only, which saves what those kernels save"),
    **dict.fromkeys(("pissa_*", "mixture_of_depths", "use_llama_pro", "create_new_adapter", "oft_*", "module_dropout",
                     "shift_attn", "rope_scaling", "train_from_scratch", "loraplus_lr_embedding"),
                    "use finetuning_type: lora with use_dora, use_rslora or loraplus_lr_ratio, or freeze or full"),
    **dict.fromkeys(("num_beams", "eval_num_beams", "generation_num_beams", "repetition_penalty", "length_penalty",
                     "generation_config", "skip_special_tokens"), "answers are greedy, so that scores repeat"),
    **dict.fromkeys(("max_length", "generation_max_length"), "use max_new_tokens"),
    **dict.fromkeys(("streaming", "tokenized_path", "cache_dir"),
                    "data is read from its files each time; HF_HOME says where downloads are kept"),
    **dict.fromkeys(("audio_*", "use_audio_in_video"), "audio is not supported; use rows with images, videos and text"),
    **dict.fromkeys(("image_do_pan_and_scan", "crop_to_patches", "image_resolution"),
                    "use image_max_pixels and image_min_pixels"),
    **dict.fromkeys(("save_strategy", "save_only_model", "save_safetensors", "enable_jit_checkpoint"),
                    "checkpoints hold all that the run needs to go on; save_steps and save_total_limit say how many"),
    **dict.fromkeys(("activation_checkpointing*", "gradient_checkpointing"), "use disable_gradient_checkpointing"),
    **dict.fromkeys(("eval_on_each_dataset", "eval_on_start", "include_for_metrics", "include_inputs_for_metrics",
                     "batch_eval_metrics", "compute_accuracy", "metric_for_best_model", "greater_is_better",
                     "label_names", "use_legacy_prediction_loop", "past_index"),
                    "validation measures the loss; `lensmith eval` scores the answers"),
    **dict.fromkeys(("tool_format", "default_system", "preserve_thinking", "enable_thinking"),
                    "chats are written by the model's own template; give each row its system text"),
    **dict.fromkeys(("use_cpu", "no_cuda", "use_mps_device", "tpu_*"),
                    "the GPU is used if there is one; CUDA_VISIBLE_DEVICES= hides it"),
    **dict.fromkeys(("profile*", "enable_torch_profiler", "debug"), "run the command under py-spy or nsys instead"),
    **dict.fromkeys(("ignore_data_skip", "restore_callback_states_from_checkpoint", "full_determinism", "data_seed",
                     "disable_shuffling", "train_sampling_strategy", "dataloader_drop_last"),
                    "the order follows from seed, and a run that goes on keeps it"),
    "train_on_prompt": "labels are the answers; write what else is to be learnt as an answer",
    "mask_history": "mark the earlier answers in the data: loss: false in the turn",
    "freeze_extra_modules": "name the modules in freeze_trainable_modules",
    "adapter_folder": "give the adapter's whole path as adapter_name_or_path",
    "model_revision": "download that revision and give its folder as model_name_or_path",
    "auto_find_batch_size": "set per_device_train_batch_size: auto",
    "lr_scheduler_kwargs": "use lr_scheduler_type: cosine, linear, constant or constant_with_warmup",
    "logging_strategy": "set logging_steps",
    "logging_dir": "logs are in output_dir/runs; set output_dir",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
}  # fmt: skip


@cache
def known_defaults() -> dict[str, list[Any]]:
    """Every key that LLaMA-Factory knows, and its default; several where versions differ."""
    text = (Path(__file__).parent / "llamafactory_keys.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["defaults"])


def advice(key: str) -> str | None:
    """What to do instead of a key of LLaMA-Factory's that is refused; None if it is not one."""
    if key in ADVICE:
        return ADVICE[key]
    return next((text for name, text in ADVICE.items() if name.endswith("*") and key.startswith(name[:-1])), None)


def refused_keys() -> dict[str, list[str]]:
    """The keys that are refused where they ask for something, by what to do instead."""
    found: dict[str, list[str]] = {}
    for key in known_defaults().keys() - Recipe.model_fields.keys() - IGNORED:
        found.setdefault(advice(key) or "", []).append(key)
    return {text: sorted(keys) for text, keys in found.items()}


def drop_idle_keys(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values without those that ask for nothing; what remains is Recipe's to check."""
    kept = {}
    if values.get("neat_packing") is True:  # there, packing whose rows do not see each other; ours never do
        values = values | {"packing": True}
    for key, value in values.items():
        renamed = RENAMED.get(key, key)
        key = key if renamed in values else renamed
        field = Recipe.model_fields.get(key)
        if field is None:
            if key not in IGNORED and not (key in known_defaults() and _asks_for_nothing(key, value)):
                kept[key] = value
            continue
        value = _none(field, value)
        if value is not None or _takes(field, type(None)):
            kept[key] = value
    return kept


def _asks_for_nothing(key: str, value: Any) -> bool:
    defaults = known_defaults()[key]
    if value in (None, [], {}) or (isinstance(value, str) and value.strip().lower() in ("", "none", "null")):
        return True
    if value is False:
        return True not in [default for default in defaults if default is True] or False in SAME.get(key, [])
    return any(value == wanted and type(value) is type(wanted) for wanted in SAME.get(key, [])) or any(
        isinstance(value, bool) == isinstance(default, bool) and value == default for default in defaults
    )


def _none(field: FieldInfo, value: Any) -> Any:
    """None for what means unset: the text none where that is no choice, and false where the key is no boolean."""
    if isinstance(value, str) and value.strip().lower() in ("none", "null"):
        return value if value in get_args(field.annotation) else None
    if (
        value == []
        or (value == "" and not _takes(field, str))
        or (value is False and _takes(field, type(None)) and not _takes(field, bool))
    ):
        return None
    return value


def _takes(field: FieldInfo, kind: type) -> bool:
    return field.annotation is kind or kind in get_args(field.annotation)
