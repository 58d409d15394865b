"""A recipe: one YAML file whose keys are LLaMA-Factory's, checked before anything is loaded.

`Recipe` is at once the check, the documentation (each field's description) and the JSON schema
(`Recipe.model_json_schema()`). A key is in it only if it does what it says; a key of LLaMA-Factory's that is not
supported says so, and an unknown one gets a suggestion.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from finetune.errors import FinetuneError
from finetune.recipe import values
from finetune.recipe.contradictions import refuse_contradictions


class Recipe(BaseModel):
    """Every key a recipe may have. Paths are relative to the working directory."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())

    # Model
    model_name_or_path: str = Field(description="The base model: a folder, or its id on the Hugging Face hub.")
    adapter_name_or_path: str | None = Field(
        None,
        description="Folder of a trained adapter: eval answers with it, export merges it, training goes on with it.",
    )
    finetuning_type: Literal["lora", "freeze", "full"] = Field(
        "lora", description="What is trained: `lora`, small adapters; `freeze`, the last layers; `full`, all weights."
    )
    stage: Literal["sft", "dpo"] = Field(
        "sft", description="`sft`: learn answers; `dpo`: learn to prefer chosen answers to rejected ones."
    )
    quantization_bit: Literal[4] | None = Field(None, description="4 for QLoRA: NF4 weights of the language model.")
    quantization_method: Literal["bnb"] = Field("bnb", description="Who quantises: bitsandbytes.")
    quantization_type: Literal["nf4"] = Field("nf4", description="The 4-bit data type (arXiv:2305.14314).")
    double_quantization: bool = Field(True, description="Quantise the quantisation constants too.")
    fp16: bool | None = Field(None, description="Compute in float16. Unset: by the device; the reason is printed.")
    bf16: bool | None = Field(None, description="Compute in bfloat16. Unset: by the device.")

    flash_attn: Literal["auto", "sdpa", "disabled"] = Field(
        "auto", description="Attention: `auto` and `sdpa` are PyTorch's, `disabled` is transformers' eager one."
    )

    # What is trained
    freeze_language_model: bool = Field(False, description="The language model is not trained.")
    freeze_vision_tower: bool = Field(True, description="The vision tower is not trained.")
    freeze_multi_modal_projector: bool = Field(True, description="The projector (`visual.merger`) is not trained.")
    freeze_trainable_layers: int = Field(
        2, description="With `freeze`: the last N layers of the language model are trained, or the first -N."
    )
    freeze_trainable_modules: str = Field("all", description="With `freeze`: modules of those layers, or `all`.")
    neftune_noise_alpha: float | None = Field(
        None, gt=0, description="NEFTune: noise on the text's embeddings (arXiv:2310.05914)."
    )

    # LoRA
    lora_rank: int = Field(8, ge=1, description="Rank of the adapters.")
    lora_alpha: int | None = Field(None, ge=1, description="Scale of the adapters is alpha / rank. Unset: 2 x rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapters.")
    lora_target: str = Field(
        "all", description="Linears with adapters: `all`, names (`q_proj,v_proj`) or one regular expression."
    )
    additional_target: str | None = Field(
        None, description="Modules trained whole beside the adapters, and saved with them: `embed_tokens,lm_head`."
    )
    use_dora: bool = Field(False, description="Train each row's length apart from its direction (arXiv:2402.09353).")
    loraplus_lr_ratio: float | None = Field(
        None, gt=0, description="LoRA+: B matrices learn this many times faster than A (arXiv:2402.12354)."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (arXiv:2312.03732).")

    # Preferences
    pref_loss: Literal["sigmoid", "ipo", "orpo", "simpo"] = Field(
        "sigmoid",
        description="With `dpo`: `sigmoid` is DPO's (arXiv:2305.18290), `ipo` (arXiv:2310.12036); without a reference "
        "model, `orpo` (arXiv:2403.07691) and `simpo` (arXiv:2405.14734).",
    )
    pref_beta: float = Field(0.1, gt=0, description="How closely to stay with the reference; scale of the rewards.")
    pref_ftx: float = Field(0.0, ge=0, description="Share of the chosen answers' own loss a token, added.")
    dpo_label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="With `sigmoid`: share of the pairs that may be the wrong way round."
    )
    simpo_gamma: float = Field(0.5, ge=0, description="With `simpo`: by how much the chosen answer is to be better.")

    # Data
    dataset: str | None = Field(
        None, description="To train on, comma separated: names in dataset_info.json, files, folders or ids."
    )
    eval_dataset: str | None = Field(
        None, description="Names to answer and score; with an eval_strategy, to validate on."
    )
    val_size: float = Field(
        0.0, ge=0, description="Rows held out to validate on, a share or a number; split by image and video."
    )
    mix_strategy: Literal["concat", "interleave_under", "interleave_over"] = Field(
        "concat",
        description="Several datasets: one after the other, or in turns until the first, or the last, is used up.",
    )
    interleave_probs: str | None = Field(
        None, description="Shares of the datasets in interleaving, comma separated. Unset: they take turns."
    )
    dataset_dir: str = Field("data", description="Folder of dataset_info.json and its files.")
    media_dir: str | None = Field(
        None, description="Folder that paths of images and videos are relative to. Unset: dataset_dir."
    )
    max_samples: int | None = Field(None, ge=1, description="Use only the first N rows of each dataset.")
    bad_rows: Literal["error", "skip"] = Field(
        "error", description="Rows that are broken, or whose images are: an error, or left out, counted and named."
    )
    preprocessing_num_workers: int | None = Field(
        None, ge=1, description="Processes that read many rows. Unset: one a core."
    )
    cutoff_len: int = Field(
        2048, ge=1, description="Most tokens of a row, images and videos included; nothing is ever cut."
    )
    cutoff_policy: Literal["drop", "error", "shrink"] = Field(
        "drop", description="Longer rows: left out and counted, an error, or their images and frames shrunk to fit."
    )
    image_max_pixels: int | None = Field(None, ge=1, description="Shrink images to so many pixels. Unset: the model's.")
    box_format: Literal["original", "resized", "relative"] | None = Field(
        None,
        description="What the boxes in the data are: pixels of the `original` image, pixels of the image as the model "
        "gets it (`resized`), or 0 to 1000 (`relative`). They are moved to what the model was made for. Unset: text.",
    )
    allow_image_urls: bool = Field(False, description="Images may be http(s) URLs: they are fetched once and kept.")
    image_min_pixels: int | None = Field(None, ge=1, description="Enlarge images to so many pixels. Unset: model's.")
    # LLaMA-Factory's default, with which 128 frames are at most 4,096 tokens of Qwen3-VL; with Qwen2-VL's own limit,
    # 12.8 megapixels a frame, they could be over a million.
    video_max_pixels: int | None = Field(
        65536,
        ge=1,
        description="Shrink the frames of videos to so many pixels each. `null`: only to the model's limits.",
    )
    video_min_pixels: int | None = Field(
        None, ge=1, description="Enlarge the frames of videos to so many pixels each. Unset: the model's."
    )
    video_fps: float = Field(
        2.0, gt=0, le=1000, description="Frames taken of a second of a video file; the rate that lists of frames have."
    )
    video_maxlen: int = Field(128, ge=1, description="Most frames taken of a video, evenly spread over it.")

    serve_with: str | None = Field(
        None, description="Of `lensmith`, `lmdeploy`, `ollama`: `check` warns of image sizes that one does not keep."
    )

    # Training
    output_dir: str | None = Field(None, description="Folder for the adapter, its checkpoints and logs, or the scores.")
    overwrite_output_dir: bool = Field(False, description="Start afresh in an output_dir that holds an earlier run.")
    resume_from_checkpoint: bool | str | None = Field(
        None, description="A checkpoint folder, true for the last one, false for none. Unset: the last one if any."
    )
    per_device_train_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        8,
        description="Rows in a forward pass. `auto`: as many of gradient_accumulation_steps rows as memory holds and "
        "are quickest, by the estimate and on a GPU by some seconds of trial, which is printed.",
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Forward passes in an optimiser step; with a batch size of auto, the rows in it."
    )
    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate.")
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the data.")
    max_steps: int = Field(-1, ge=-1, description="Optimiser steps; above 0 it replaces num_train_epochs.")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "linear", description="How the learning rate falls after the warm-up."
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Share of the steps over which the learning rate rises.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises; above 0 it wins.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first beta.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second beta.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient's norm to this; 0 does not clip.")
    optim: Literal["adamw_torch", "paged_adamw_8bit"] = Field(
        "adamw_torch", description="AdamW; `paged_adamw_8bit` keeps its states in 8 bits, on a GPU."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of the adapters' start, the order and the dropout.")
    group_by_length: bool = Field(True, description="Batches of rows with similar length: less padding.")
    packing: bool = Field(
        False, description="Rows of a forward pass lie after each other, unpadded; no result changes, nor which rows."
    )
    disable_gradient_checkpointing: bool | None = Field(
        None, description="True keeps all activations: quicker, larger. Unset: of as many layers as memory holds."
    )
    fsdp: Literal["full_shard", "full_shard auto_wrap"] | None = Field(
        None, description="Under torchrun, share the weights out over the GPUs. Unset: each GPU has them all (DDP)."
    )
    ddp_timeout: int | None = Field(None, ge=1, description="Seconds that processes wait for each other.")
    logging_steps: int = Field(10, ge=1, description="Log every N steps.")
    save_steps: int = Field(500, ge=1, description="Save a checkpoint every N steps.")
    save_total_limit: int | None = Field(None, ge=1, description="Keep only the newest N checkpoints.")
    plot_loss: bool = Field(True, description="Draw training_loss.png.")
    report_to: str = Field("tensorboard", description=values.REPORTS)

    eval_strategy: Literal["no", "steps", "epoch"] = Field("no", description="When to validate, besides at the end.")
    eval_steps: int | None = Field(None, ge=1, description="Validate every N steps. Unset: logging_steps.")
    eval_delay: int = Field(0, ge=0, description="First step after which to validate.")
    sample_answers: int = Field(
        0,
        ge=0,
        description="Validation rows answered before the first step and at each validation, into sample_answers.jsonl, "
        "to watch answers change. Not with fsdp.",
    )
    load_best_model_at_end: bool = Field(False, description="Keep the adapter with the lowest validation loss.")
    early_stopping_steps: int | None = Field(None, ge=1, description="Stop after N validations without a better loss.")

    # Evaluation
    per_device_eval_batch_size: int = Field(
        8,
        ge=1,
        description="Rows validated on, or questions answered, at once. `eval` answers as many as the GPU holds if it "
        "is unset.",
    )
    max_new_tokens: int = Field(1024, ge=1, description="Longest answer in tokens.")
    image_sizes: Literal["ollama"] | None = Field(
        None, description="For `eval`: size images as this server does, to see what is lost. Unset: as trained."
    )

    # Export
    export_dir: str | None = Field(None, description="Folder for the merged model.")
    export_size: float | None = Field(
        None, gt=0, description="Largest shard in GB (10^9). Unset: the base's own shards."
    )
    export_legacy_format: Literal[False] = Field(False, description="Weights are written as safetensors.")

    # Accepted so that LLaMA-Factory's files run as they are; what they ask for is always so here, or has no effect.
    template: str | None = Field(None, description="No effect: the model's own chat template is used.")
    do_train: bool = Field(True, description="No effect: the command decides.")
    do_eval: bool = Field(True, description="No effect: validation rows are used when there are any.")
    do_predict: bool = Field(True, description="No effect: the command decides.")
    predict_with_generate: bool = Field(True, description="No effect: answers are always generated.")
    prediction_loss_only: bool = Field(True, description="No effect: validation never keeps logits.")
    trust_remote_code: bool = Field(False, description="No effect: code in a model folder is never run.")
    overwrite_cache: bool = Field(False, description="No effect: what is cached is found by its content.")
    dataloader_num_workers: int | None = Field(None, ge=0, description="No effect: images are decoded in threads.")
    use_unsloth: Literal[False] = Field(False, description="No effect.")
    export_device: Literal["cpu", "auto"] = Field("cpu", description="No effect: merging needs no device.")
    do_sample: bool = Field(False, description="No effect: answers are greedy, so that scores repeat.")
    temperature: float | None = Field(None, ge=0, description="No effect: answers are greedy.")
    top_p: float | None = Field(None, gt=0, le=1, description="No effect: answers are greedy.")
    top_k: int | None = Field(None, ge=-1, description="No effect: answers are greedy.")

    _warnings: list[str] = PrivateAttr(default_factory=list)

    _quantizer = field_validator("quantization_method", mode="before")(values.old_quantizer)
    _optimizer = field_validator("optim", mode="before")(values.same_optimizer)
    _lists = field_validator(
        *("dataset", "eval_dataset", "interleave_probs", "lora_target", "additional_target"),
        *("freeze_trainable_modules", "adapter_name_or_path", "report_to", "fsdp", "serve_with"),
        mode="before",
    )(values.joined)
    _servers = field_validator("serve_with")(values.known_servers)
    _reports = field_validator("report_to")(values.known_reports)
    _strategy = field_validator("eval_strategy", mode="before")(values.yaml_no)
    _rows = field_validator("per_device_train_batch_size", mode="before")(values.rows_or_auto)
    _bits = field_validator("quantization_bit", mode="before")(values.number_in_text)

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        refuse_contradictions(self)
        return self

    @property
    def warnings(self) -> list[str]:
        """What is wrong in the recipe although it can be run: a sentence each."""
        return self._warnings

    @property
    def batch_size(self) -> int:
        """Rows in a forward pass; 1 of `auto` until it is chosen, as gradient_accumulation_steps counts rows then."""
        return 1 if self.per_device_train_batch_size == "auto" else self.per_device_train_batch_size

    @property
    def alpha(self) -> int:
        """lora_alpha, or its default."""
        return self.lora_alpha if self.lora_alpha is not None else 2 * self.lora_rank

    @property
    def needs_reference(self) -> bool:
        """Whether the loss of preferences compares with the model as it was before training."""
        return self.pref_loss in ("sigmoid", "ipo")

    @property
    def interleave_shares(self) -> list[float] | None:
        """interleave_probs as numbers, [] if they are none; None if unset."""
        try:
            return None if self.interleave_probs is None else [float(p) for p in self.interleave_probs.split(",")]
        except ValueError:
            return []

    def require(self, *keys: str) -> None:
        """Raises FinetuneError if one of the keys is unset."""
        for key in keys:
            if getattr(self, key) is None:
                raise FinetuneError(f"The recipe lacks {key}: {Recipe.model_fields[key].description}")
