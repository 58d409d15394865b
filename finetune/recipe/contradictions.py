"""Keys of a recipe that do not go together."""

from __future__ import annotations

from typing import Any


def refuse_contradictions(recipe: Any) -> None:
    """Raises ValueError with what is wrong between the keys of a schema.Recipe, which pydantic reports."""
    if recipe.fp16 and recipe.bf16:
        raise ValueError("fp16 and bf16 are both true; set one of them, or neither")
    if recipe.video_max_pixels and recipe.video_min_pixels and recipe.video_min_pixels > recipe.video_max_pixels:
        raise ValueError("video_min_pixels is more than video_max_pixels")
    if recipe.val_size and recipe.eval_dataset:
        raise ValueError("val_size and eval_dataset are both set; validate on one of them")
    if recipe.val_size >= 1 and recipe.val_size != int(recipe.val_size):
        raise ValueError(f"val_size {recipe.val_size} is neither a share below 1 nor a number of rows")
    if recipe.interleave_probs is not None:
        shares = recipe.interleave_shares
        if recipe.mix_strategy == "concat":
            raise ValueError("interleave_probs needs mix_strategy: interleave_under or interleave_over")
        if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"interleave_probs {recipe.interleave_probs!r} are not positive shares that sum to 1")
    if recipe.finetuning_type != "lora":
        for key in ("quantization_bit", "use_dora", "use_rslora", "loraplus_lr_ratio", "additional_target"):
            if getattr(recipe, key):
                raise ValueError(f"{key} goes with finetuning_type: lora, not with {recipe.finetuning_type}")
    if recipe.dpo_label_smoothing and recipe.pref_loss != "sigmoid":
        raise ValueError(f"dpo_label_smoothing goes with pref_loss: sigmoid, not with {recipe.pref_loss}")
    if recipe.stage == "dpo" and recipe.needs_reference and recipe.finetuning_type != "lora":
        raise ValueError(
            f"pref_loss: {recipe.pref_loss} compares with the model without its adapters, which "
            f"{recipe.finetuning_type} training has not; set finetuning_type: lora, or pref_loss: orpo or simpo"
        )
    if recipe.stage == "dpo" and recipe.fsdp:
        raise ValueError("fsdp does not go with stage: dpo; unset it: each GPU then holds the model (DDP)")
    if recipe.per_device_train_batch_size == "auto":
        if recipe.gradient_accumulation_steps == 1:
            raise ValueError(
                "per_device_train_batch_size: auto needs gradient_accumulation_steps: the rows of an optimiser step on "
                "each device, such as 16, of which it takes as many at once as fit"
            )
        if recipe.fsdp:
            raise ValueError("per_device_train_batch_size: auto does not go with fsdp, whose memory is not estimated")
    if recipe.packing and recipe.flash_attn == "disabled":
        raise ValueError("packing needs PyTorch's attention; unset flash_attn, or packing")
    if recipe.packing and recipe.neftune_noise_alpha:
        raise ValueError("packing does not go with neftune_noise_alpha, whose noise depends on the padded length")
    if recipe.fsdp and recipe.quantization_bit:
        raise ValueError("fsdp cannot share out 4-bit weights; unset fsdp or quantization_bit")
    if recipe.freeze_language_model and recipe.freeze_vision_tower and recipe.freeze_multi_modal_projector:
        raise ValueError("language model, vision tower and projector are all frozen; nothing would be trained")
    validates = recipe.val_size or recipe.eval_dataset
    for key in ("load_best_model_at_end", "early_stopping_steps"):
        if getattr(recipe, key) and recipe.eval_strategy == "no":
            raise ValueError(f"{key} needs eval_strategy: steps or epoch")
    if recipe.eval_strategy != "no" and not validates:
        raise ValueError(f"eval_strategy {recipe.eval_strategy} needs val_size or eval_dataset")
