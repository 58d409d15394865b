"""Writes trl_preferences.json: the losses that TRL's trainers compute of eight pairs, and what went into them.

    python -m tests.support.finetune.goldens.make_trl_preferences    # with trl 1.16 and datasets beside Lensmith

The model is the repository's own with adapters drawn from a seed. TRL's ORPO and CPO (SimPO) trainers tokenise a chat
in a way of their own, so they are given the ids and labels that Lensmith makes of the pairs. ORPO's also learns the
question; its figures here leave that out, as the paper does.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from finetune.data.datasets import load_rows
from finetune.encoding.encoded import Encoded, split_pair
from finetune.families.qwen_vl import QwenVL
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.model.targets import make_trainable
from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe
from tests.support.finetune.trl_pairs import BETA, GAMMA, MEANS, PAIRS, move, write_pairs
from tests.support.paths import SHAPES_VL


def main() -> None:
    import datasets  # type: ignore[import-not-found]
    import transformers
    import trl  # type: ignore[import-not-found]
    from trl import DPOConfig, DPOTrainer  # type: ignore[import-not-found]
    from trl.experimental.cpo import CPOConfig, CPOTrainer  # type: ignore[import-not-found]
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # type: ignore[import-not-found]

    recipe = make_recipe({"model_name_or_path": str(SHAPES_VL), "lora_rank": 4, "output_dir": "unused"})
    folder = open_base(recipe)
    processor = QwenVL().read(folder, recipe).processor
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for question, chosen, rejected in PAIRS
    ]
    found: dict[str, Any] = {}
    common = {
        "beta": BETA, "per_device_train_batch_size": len(rows), "report_to": [], "use_cpu": True, "bf16": False,
        "remove_unused_columns": False, "gradient_checkpointing": False, "max_length": 512,
    }  # fmt: skip
    trainers: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "sigmoid": (DPOTrainer, DPOConfig, {"loss_type": "sigmoid"}),
        "ipo": (DPOTrainer, DPOConfig, {"loss_type": "ipo"}),
        "simpo": (CPOTrainer, CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": GAMMA}),
        "orpo": (ORPOTrainer, ORPOConfig, {}),
    }
    for name, (trainer_class, config_class, keys) in trainers.items():
        model = make_trainable(load_base(folder, recipe, torch.device("cpu"), torch.float32), recipe)
        with tempfile.TemporaryDirectory() as out:
            config = config_class(output_dir=out, **common, **keys)
            data = datasets.Dataset.from_list(rows)
            trainer = trainer_class(model, args=config, train_dataset=data, processing_class=processor.tokenizer)
            move(model)  # after TRL has looked what the reference is
            model.eval()
            if name in ("simpo", "orpo"):
                found[name] = without_reference(trainer, model, batch_of(encoded_pairs(recipe)))
                found[name]["losses"] = losses_of_means(trainer)
                continue
            batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(rows))])
            found[name] = {"loss": trainer.compute_loss(model, batch).item()}
            for source in (getattr(trainer, "_metrics", {}), getattr(trainer, "_stored_metrics", {})):
                for kept in source.values():
                    found[name] |= {k: float(v[-1]) for k, v in kept.items() if k.startswith("rewards/")}
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    path = Path(__file__).with_name("trl_preferences.json")
    path.write_text(json.dumps({"made_with": versions, "losses": found}, indent=1) + "\n")


def encoded_pairs(recipe: Recipe) -> list[tuple[Encoded, Encoded]]:
    """Both chats of each pair."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write_pairs(path)
        made = recipe.model_copy(update={"stage": "dpo", "dataset": str(path)})
        encoder = QwenVL().read(open_base(made), made).encoder
        return [split_pair(row) for row in encoder.encode(load_rows(str(path), made).rows)]


def batch_of(pairs: list[tuple[Encoded, Encoded]]) -> dict[str, torch.Tensor]:
    """The pairs as TRL's collator lays them out."""
    batch = {}
    for name, chats in zip(("chosen", "rejected"), zip(*pairs, strict=True), strict=True):
        length = max(map(len, chats))
        ids, mask, labels = (torch.full((len(chats), length), fill) for fill in (0, 0, -100))
        for n, chat in enumerate(chats):
            ids[n, : len(chat)], mask[n, : len(chat)] = torch.from_numpy(chat.ids.astype("int64")), 1
            labels[n, : len(chat)][chat.labelled] = ids[n, : len(chat)][chat.labelled]
        batch |= {f"{name}_input_ids": ids, f"{name}_attention_mask": mask, f"{name}_labels": labels}
    return batch


@torch.no_grad()  # type: ignore[untyped-decorator]
def without_reference(trainer: Any, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What SimPO's or ORPO's trainer makes of a batch: the mean loss and rewards."""
    if hasattr(trainer, "cpo_loss"):
        loss, figures = trainer.get_batch_loss_metrics(model, batch)
    else:
        chosen = trainer.concatenated_forward(model, batch)[0]
        whole, figures = trainer.get_batch_loss_metrics(model, batch)
        loss = whole - figures["nll_loss"] - chosen.mean()
    return {"loss": float(loss)} | {key: value for key, value in figures.items() if key.startswith("rewards/")}


def losses_of_means(trainer: Any) -> list[float]:
    """The losses that SimPO's or ORPO's trainer makes of MEANS."""
    chosen, rejected = torch.tensor(MEANS)
    if hasattr(trainer, "cpo_loss"):
        return list(trainer.cpo_loss(chosen, rejected)[0].tolist())
    return list((-chosen - trainer.odds_ratio_loss(chosen, rejected)[0]).tolist())


if __name__ == "__main__":
    main()
