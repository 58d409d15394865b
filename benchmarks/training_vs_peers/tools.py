"""The same training by each tool, through the interface that its own documentation shows.

Each gets the folder with `model` and `data`, the compute dtype ("fp16" or "bf16"), the number of steps, and a meter.
A tool is imported in its function, as the order of imports is its own business: Unsloth patches what comes after it.
Without a GPU all compute in float32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.finetune_gpu import CUTOFF, MAX_PIXELS, recipe_keys
from benchmarks.training_vs_peers.meter import SAMPLES, Meter, describe

TARGETS = r".*language_model\.layers\.\d+\..*_proj"
WORKERS = 4  # of a data loader, as in LLaMA-Factory's own example for Qwen3-VL


class Task(NamedTuple):
    work: Path
    dtype: str
    steps: int
    meter: Meter

    @property
    def output(self) -> Path:
        return self.work / "out" / self.dtype


def train_with_lensmith(task: Task) -> None:
    import torch

    from finetune.recipe.load import make_recipe
    from finetune.training.loop import train
    from finetune.training.trainer import Trainer

    step = Trainer.step

    def timed_step(self: Any, *arguments: Any) -> tuple[float, float]:
        if not task.meter.steps:
            task.meter.facts |= describe(self.model)
            task.meter.begin()
        loss, norm = step(self, *arguments)
        task.meter.end_step(loss)
        return loss, norm

    setattr(Trainer, "step", timed_step)  # noqa: B010
    keys = recipe_keys(task.work, task.output / "lensmith", task.steps)
    train(make_recipe(keys | ({task.dtype: True} if torch.cuda.is_available() else {})))


def train_with_unsloth(task: Task) -> None:
    import unsloth  # type: ignore[import-not-found] # isort: skip
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]
    from unsloth import FastVisionModel
    from unsloth.trainer import UnslothVisionDataCollator  # type: ignore[import-not-found]

    task.meter.facts["version"] = unsloth.__version__
    model, processor = FastVisionModel.from_pretrained(
        str(task.work / "model"),
        max_seq_length=CUTOFF,
        dtype=half(task.dtype),
        load_in_4bit=True,
        use_gradient_checkpointing="unsloth",
    )
    model = FastVisionModel.get_peft_model(
        model, finetune_vision_layers=False, r=8, lora_alpha=16, lora_dropout=0, bias="none", random_state=42
    )
    FastVisionModel.for_training(model)
    rows = []  # a list of chats with decoded pictures, as its notebooks have it
    for row in read_rows(task.work)[: task.steps * SAMPLES]:
        content = [{"type": "image", "image": picture(path)} for path in row["images"]]
        user = {"role": "user", "content": [*content, {"type": "text", "text": row["question"]}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}
        rows.append({"messages": [user, answer]})
    collator = UnslothVisionDataCollator(
        model,
        processor,
        resize="max",  # leaves the pictures as they are; its default would shrink them to 512 x 384
        train_on_responses_only=True,
        instruction_part="<|im_start|>user\n",
        response_part="<|im_start|>assistant\n",
    )
    arguments = SFTConfig(
        **trainer_arguments(task),
        optim="adamw_8bit",
        remove_unused_columns=False,
        dataset_text_field="",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=CUTOFF,
    )
    SFTTrainer(
        model=model, processing_class=processor, data_collator=collator, train_dataset=rows, args=arguments,
        callbacks=[callback(task.meter)],
    ).train()  # fmt: skip


def train_with_trl(task: Task) -> None:
    import torch
    from datasets import Dataset, Features, Image, List, Value  # type: ignore[import-not-found]
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer, __version__

    task.meter.facts["version"] = __version__
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=half(task.dtype),
    )
    folder, device = str(task.work / "model"), 0 if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=half(task.dtype), device_map={"": device}, quantization_config=quantisation
    )
    turn = {"role": Value("string"), "content": Value("string")}
    rows = [
        {
            "images": row["images"],
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in read_rows(task.work)
    ]
    features = Features({"images": List(Image()), "prompt": List(turn), "completion": List(turn)})
    trainer = SFTTrainer(
        model=model,
        processing_class=AutoProcessor.from_pretrained(folder),
        train_dataset=Dataset.from_list(rows, features=features),
        peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS),
        args=SFTConfig(
            **trainer_arguments(task), max_length=CUTOFF, gradient_checkpointing=True, dataloader_num_workers=WORKERS
        ),
        callbacks=[callback(task.meter)],
    )
    for parameter in trainer.model.parameters():
        # It makes a quantised model's adapters bfloat16, which fp16's gradient scaler cannot unscale.
        if task.dtype == "fp16" and parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.train()


def train_with_llamafactory(task: Task) -> None:
    from llamafactory.extras.env import VERSION  # type: ignore[import-not-found]
    from llamafactory.train.tuner import run_exp  # type: ignore[import-not-found]

    task.meter.facts["version"] = VERSION
    keys = trainer_arguments(task) | {
        "model_name_or_path": str(task.work / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_target": "all",
        "quantization_bit": 4,
        "quantization_method": "bnb",
        "double_quantization": True,
        "dataset": "rows",
        "dataset_dir": str(task.work / "data"),
        "template": "qwen3_vl_nothink",
        "cutoff_len": CUTOFF,
        "image_max_pixels": MAX_PIXELS,
        "overwrite_cache": True,
        "overwrite_output_dir": True,
        "preprocessing_num_workers": WORKERS,
        "dataloader_num_workers": WORKERS,
        "plot_loss": False,
    }
    recipe = task.output.parent / f"llamafactory_{task.dtype}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(json.dumps(keys))  # JSON is YAML
    sys.argv = ["llamafactory-cli", str(recipe)]
    run_exp(callbacks=[callback(task.meter)])


TOOLS: dict[str, Callable[[Task], None]] = {
    "lensmith": train_with_lensmith,
    "before": train_with_lensmith,  # with another checkout on the path
    "unsloth": train_with_unsloth,
    "trl": train_with_trl,
    "llamafactory": train_with_llamafactory,
}


def half(dtype: str) -> Any:
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    return {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]


def trainer_arguments(task: Task) -> dict[str, Any]:
    """What the three tools on transformers' Trainer share."""
    import torch

    gpu = torch.cuda.is_available()
    precision = {task.dtype: True} if gpu else {"use_cpu": True}
    return precision | {
        "output_dir": str(task.output / "peer"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": SAMPLES // 2,
        "max_steps": task.steps,
        "learning_rate": 5e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 42,
    }


def callback(meter: Meter) -> Any:
    """For transformers' Trainer."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
            meter.facts |= describe(model)
            meter.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            meter.losses = [record["loss"] for record in state.log_history if "loss" in record]
            meter.end_step()

    return Steps()


def read_rows(work: Path) -> list[dict[str, Any]]:
    """Rows as paths of pictures, a question and an answer."""
    rows = json.loads((work / "data" / "rows.json").read_text())
    return [
        {
            "images": [str(work / "data" / name) for name in row["images"]],
            "question": row["conversations"][0]["value"].replace("<image>", ""),
            "answer": row["conversations"][1]["value"],
        }
        for row in rows
    ]


def picture(path: str) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")
