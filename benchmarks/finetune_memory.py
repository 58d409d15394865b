"""Peak memory of training on one GPU, measured, beside what `finetune.memory.estimate` estimates for the same recipe.

    python -m benchmarks.finetune_memory --work DIR --json RESULT.json [--only NAME...] [--tiny]

Models have the real shapes of Qwen3-VL-2B and -8B and random weights; the steps are those of `lensmith train`. A recipe
named t4-... runs as on a T4: at most 14.6 GiB, compute capability 7.5 (so float16), neither flash nor cuDNN attention.
Peak memory is what PyTorch's allocator reserves; it is also recorded by moment (loading, vision tower, language model,
loss, backward, optimizer step) to show which term of an estimate is wrong. The report's samples, answered when training
is done, are a moment of their own and not in the peak. --tiny rehearses everything on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from benchmarks.finetune_gpu import QUESTION, cap_memory
from benchmarks.models import write_model
from finetune.errors import FinetuneError
from finetune.media.bank import ImageBank
from finetune.memory.cards import CARDS
from finetune.memory.estimate import estimate
from finetune.memory.heaviest_load import heaviest_load
from finetune.memory.layered import why_modules
from finetune.recipe.load import make_recipe
from finetune.training.dataset import load_training_data
from finetune.training.loop import train
from finetune.training.trainer import Trainer

MIB = 2**20
STEPS, ACCUMULATION = 3, 2
SAMPLES = "samples"
WORDS = ("red", "blue", "circle", "square", "left", "right", "small", "large")


@dataclass(frozen=True)
class Case:
    """A recipe: model shape, images a row of (width, height), words of the answer, rows a batch, other keys."""

    name: str
    shape: str
    images: int
    size: tuple[int, int]
    batch: int
    recipe: dict[str, Any] = field(default_factory=dict)
    words: int = 12


QLORA: dict[str, Any] = {"quantization_bit": 4, "lora_rank": 8, "lora_alpha": 16}
CASES = (
    Case("t4-2b-tutorial", "2B", 8, (640, 480), 2, QLORA | {"lora_dropout": 0.1}),
    Case("t4-2b-one-image", "2B", 1, (1024, 768), 4, QLORA | {"lora_rank": 16}),
    Case("t4-2b-lora-16bit", "2B", 4, (640, 480), 1, {"lora_rank": 8}),
    Case("t4-2b-no-checkpointing", "2B", 1, (640, 480), 2, QLORA | {"disable_gradient_checkpointing": True}),
    Case("t4-2b-long-answers", "2B", 1, (512, 512), 4, QLORA, words=300),
    Case("t4-2b-qkvo-paged", "2B", 2, (640, 480), 2,
         QLORA | {"lora_target": "q_proj,k_proj,v_proj,o_proj", "optim": "paged_adamw_8bit"}),
    Case("t4-2b-freeze", "2B", 2, (640, 480), 1, {"finetuning_type": "freeze", "freeze_trainable_layers": 2}),
    Case("t4-2b-vision-lora", "2B", 2, (640, 480), 1, QLORA | {"freeze_vision_tower": False}),
    Case("2b-lora-rank64", "2B", 2, (1024, 1024), 2, {"lora_rank": 64, "lora_alpha": 128, "lora_dropout": 0.1}),
    Case("2b-lora-no-checkpointing", "2B", 1, (448, 448), 8, {"disable_gradient_checkpointing": True}),
    Case("2b-full", "2B", 1, (640, 480), 2, {"finetuning_type": "full"}),
    Case("t4-8b-tutorial", "8B", 8, (640, 480), 2, QLORA | {"lora_dropout": 0.1}),
    Case("t4-8b-one-image", "8B", 1, (640, 480), 2, QLORA | {"lora_rank": 16}),
    Case("8b-lora-16bit", "8B", 4, (640, 480), 2, {"lora_rank": 16}),
)  # fmt: skip


class Moments:
    """Allocator peaks by moment, found by hooks on every module, so that the loop runs as it is.

    peaks: moment -> MiB allocated and reserved at most; starts: moment -> most MiB allocated when it began.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, dict[str, float]] = {}
        self.starts: dict[str, float] = {}
        self.now = "loading"
        self.last = time.monotonic()
        torch.cuda.reset_peak_memory_stats()

    def enter(self, moment: str) -> None:
        if self.now == SAMPLES and moment != "end":  # the models run there as in training
            return
        torch.cuda.synchronize()
        peak = self.peaks.setdefault(self.now, {"allocated": 0.0, "reserved": 0.0, "seconds": 0.0})
        peak["allocated"] = max(peak["allocated"], torch.cuda.max_memory_allocated() / MIB)
        peak["reserved"] = max(peak["reserved"], torch.cuda.max_memory_reserved() / MIB)
        peak["seconds"] += time.monotonic() - self.last
        self.now, self.last = moment, time.monotonic()
        self.starts[moment] = max(self.starts.get(moment, 0.0), torch.cuda.memory_allocated() / MIB)
        torch.cuda.reset_peak_memory_stats()

    def most(self, kind: str) -> float:
        """The training's peak of the kind, "allocated" or "reserved"."""
        return max(peak[kind] for moment, peak in self.peaks.items() if moment != SAMPLES)


@contextmanager
def watched(vocabulary: int) -> Iterator[Moments]:
    """Watches the allocator while a model with so many tokens is trained."""
    moments = Moments()

    def tower(module: Any) -> bool:
        kind = type(module).__name__
        return "Vision" in kind and kind.endswith(("VisionModel", "TransformerPretrainedModel"))

    def before(module: Any, _: Any) -> None:
        if tower(module):
            moments.enter("vision tower")
        elif type(module).__name__.endswith("VLTextModel"):
            moments.enter("language model")
        elif isinstance(module, torch.nn.Linear) and module.out_features == vocabulary:
            moments.enter("loss")

    def after(module: Any, *_: Any) -> None:
        if tower(module):
            moments.enter("between")

    plain, answers = torch.Tensor.backward, Trainer.samples

    def samples(self: Trainer) -> Any:
        moments.enter(SAMPLES)
        return answers(self)

    def backward(self: Any, *args: Any, **kwargs: Any) -> None:
        moments.enter("backward")
        plain(self, *args, **kwargs)
        moments.enter("between")

    handles = [
        torch.nn.modules.module.register_module_forward_pre_hook(before),
        torch.nn.modules.module.register_module_forward_hook(after),
        register_optimizer_step_pre_hook(lambda *_: moments.enter("optimizer step")),
        register_optimizer_step_post_hook(lambda *_: moments.enter("between")),
    ]
    torch.Tensor.backward = backward
    Trainer.samples = samples  # type: ignore[method-assign]
    try:
        yield moments
    finally:
        torch.Tensor.backward = plain
        Trainer.samples = answers  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()
        moments.enter("end")


@contextmanager
def like_a_t4(imitate: bool) -> Iterator[None]:
    """What a T4 has: 14.6 GiB, compute capability 7.5, no flash and no cuDNN attention."""
    if not imitate or not torch.cuda.is_available():
        yield
        return
    capability = torch.cuda.get_device_capability
    cap_memory(14.6)
    torch.cuda.get_device_capability = lambda device=None: (7, 5)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.cuda.get_device_capability = capability
        torch.backends.cuda.enable_flash_sdp(True)
        torch.backends.cuda.enable_cudnn_sdp(True)
        torch.cuda.set_per_process_memory_fraction(1.0)


def write_rows(folder: Path, case: Case, rows: int, size: tuple[int, int]) -> None:
    """Captions of the case's shape, each with pictures of its own."""
    rng = random.Random(0)
    (folder / "images").mkdir(parents=True)
    data = []
    for row in range(rows):
        names = [f"images/{row}_{k}.jpg" for k in range(case.images)]
        for name in names:
            small = Image.frombytes("RGB", (40, 30), rng.randbytes(40 * 30 * 3))
            small.resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=85)
        answer = " ".join(rng.choice(WORDS) for _ in range(case.words))
        content = "<image>" * case.images + QUESTION
        data.append({"conversations": [{"from": "human", "value": content}, {"from": "gpt", "value": answer}],
                     "images": names})  # fmt: skip
    (folder / "rows.json").write_text(json.dumps(data))


def run(case: Case, work: Path, model: Path, tiny: bool) -> dict[str, Any]:
    """Trains a few steps; what was measured and what was estimated."""
    gpu = torch.cuda.is_available()
    data = work / case.name
    shutil.rmtree(data, ignore_errors=True)
    size = (64, 64) if tiny else case.size
    write_rows(data, case, case.batch * ACCUMULATION * STEPS, size)
    recipe = make_recipe(
        {
            "model_name_or_path": str(model),
            "dataset": str(data / "rows.json"),
            "output_dir": str(data / "adapter"),
            "cutoff_len": 8192,
            "image_max_pixels": 1048576,
            "per_device_train_batch_size": case.batch,
            "gradient_accumulation_steps": ACCUMULATION,
            "max_steps": STEPS,
            "num_train_epochs": 1,
            "learning_rate": 1e-5,
            "logging_steps": 1,
            "report_to": "none",
            "plot_loss": False,
        }
        | case.recipe
    )
    quiet = Console(quiet=True)
    with like_a_t4(case.name.startswith("t4-")):
        loaded = load_training_data(recipe, quiet)
        assert isinstance(loaded.bank, ImageBank)
        load = heaviest_load(loaded.rows, recipe, loaded.bank)
        card = CARDS["t4" if case.name.startswith("t4-") else "h200"]
        layered = not why_modules(recipe, loaded.folder.model_type)
        figures: dict[str, Any] = {
            "load": asdict(load),
            "estimate": asdict(estimate(loaded.folder, recipe, load, card, layered=layered)),
        }
        figures["left_over_mib"] = round(torch.cuda.memory_allocated() / MIB, 1) if gpu else 0
        if not gpu:
            train(recipe, quiet)
            return figures
        with watched(loaded.folder.text_config["vocab_size"]) as moments:
            result = train(recipe, quiet)
        figures |= {
            "reserved_gib": round(moments.most("reserved") / 1024, 3),
            "allocated_gib": round(moments.most("allocated") / 1024, 3),
            "moments": {
                name: {key: round(value, 2) for key, value in peak.items()} for name, peak in moments.peaks.items()
            },
            "starts": {name: round(value, 1) for name, value in moments.starts.items()},
            "trainable": result.trainable_parameters,
            "four_bit_layers": result.four_bit_layers,
            "skipped_steps": result.skipped_steps,
            "samples_per_second": round(result.samples_per_second, 2),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder with 25 GB free; in memory is quickest")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "torch": torch.__version__,
        "cases": {},
    }
    for case in CASES:
        if args.only and case.name not in args.only:
            continue
        model = args.work / ("tiny" if args.tiny else case.shape)
        began = time.monotonic()
        if not (model / "model.safetensors").exists():
            write_model(model, "tiny" if args.tiny else case.shape)
        made = time.monotonic()
        if gpu:
            gc.collect()
            torch.cuda.empty_cache()
        try:
            figures = run(case, args.work, model, args.tiny)
        except (FinetuneError, RuntimeError, ValueError, TypeError) as error:  # the next one is measured still
            figures = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        figures |= {"model_seconds": round(made - began, 1), "seconds": round(time.monotonic() - made, 1)}
        results["cases"][case.name] = figures
        args.json.write_text(json.dumps(results, indent=1) + "\n")
        estimated = figures.get("estimate", {}).get("reserved", 0) / 2**30
        measured = figures.get("reserved_gib", 0)
        error_share = f"{100 * (estimated / measured - 1):+.1f} %" if measured else figures.get("failed", "")
        print(f"{case.name:26} {figures['seconds']:5.1f} s  measured {measured:6.2f}  estimated {estimated:6.2f} GiB  "
              f"{error_share}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
