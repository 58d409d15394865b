"""Learning to prefer one answer to another (DPO and its kin) with the Qwen-VL families.

A pair is encoded as one chat with two answers in succession, so that it is stored, cut off and split like any other
row. Here it becomes two chats that share their question and its images, which go through the vision tower once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune.encoding.encoded import Encoded, split_pair
from finetune.families.base import Reader
from finetune.families.batch import Batch, collate_train
from finetune.families.forward import encode_images, hidden_states
from finetune.families.preference_losses import Answers, preference_losses
from finetune.families.qwen_vl import QwenFeed, QwenVL
from finetune.recipe.schema import Recipe

# What is measured of each pair: the rewards of both answers, and 1 where the chosen one's is higher.
MEASURED = ("rewards/chosen", "rewards/rejected", "rewards/accuracies")


def chosen_chat(row: Encoded) -> Encoded:
    """The chat with the chosen answer of a pair."""
    return split_pair(row)[0]


@dataclass
class PairBatch(Batch):
    """A batch of 2 B rows: B chats with their chosen answer, then the same with the rejected one.

    images: those of the first B rows; answer_tokens: label tokens of each of the 2 B rows.
    """

    answer_tokens: tuple[int, ...] = ()


class PreferenceLoss(torch.nn.Module):  # type: ignore[misc]
    """The summed loss of preferences of a batch's pairs, in float32; logits exist only at the answers.

    base: the *ForConditionalGeneration module; reference: see Reference, None for a loss without one; noise: NEFTune's
    alpha, added while `noisy` is true. measured: the sums of MEASURED over the last batch's pairs.
    """

    def __init__(self, base: Any, recipe: Recipe, reference: Reference | None, noise: float = 0.0) -> None:
        super().__init__()
        self.base, self.recipe, self.noise, self.noisy = base, recipe, noise, True
        self.reference = reference
        self.measured = [0.0] * len(MEASURED)

    def parts(self, batch: PairBatch) -> int:
        """The pairs."""
        return len(batch.answer_tokens) // 2

    def forward(self, batch: PairBatch, images: Any | None) -> Any:
        """images: the features of the pairs' images, or their (pixels, grids) if the vision tower is trained."""
        references: tuple[Any, Any] = (None, None)
        if self.reference is not None:
            with torch.no_grad(), self.reference.active():
                references = self.log_probs(batch, images).chunk(2)
        chosen, rejected = self.log_probs(batch, images, self.noise if self.noisy else 0.0).chunk(2)
        tokens = torch.tensor(batch.answer_tokens, device=chosen.device).chunk(2)
        losses, good, bad = preference_losses(
            Answers(chosen, tokens[0]), Answers(rejected, tokens[1]), *references, self.recipe
        )
        self.measured = torch.stack([good.sum(), bad.sum(), (good > bad).sum()]).tolist()
        return losses.sum()

    def log_probs(self, batch: PairBatch, images: Any | None, noise: float = 0.0) -> Any:
        """[2 B] float32 summed log-probabilities of the answers' label tokens."""
        if isinstance(images, tuple):
            images = encode_images(self.base, images[0], grid_thw=images[1])
        if images is not None:
            images = torch.cat([images, images], dim=1)
        states = hidden_states(self.base, batch, images, noise=noise)
        logits = self.base.lm_head(states.flatten(0, 1)[batch.label_at]).float()
        taken = -torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        return torch.stack([answer.sum() for answer in taken.split(batch.answer_tokens)])


class Reference:
    """The model as it was before this training: with its adapters off, or as they began.

    keeps: whether what is trained began as something (adapters trained before, whole modules), which is kept to compare
    with; fresh adapters need not be, as they change nothing at first. To be made before a checkpoint is restored.
    """

    def __init__(self, model: Any, keeps: bool) -> None:
        self.model = model
        self.began = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad] if keeps else None

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model is the reference meanwhile; without dropout, so that no random number is drawn."""
        if self.began is None:
            with self.model.disable_adapter():
                yield
            return
        now = [p.data for p, _ in self.began]
        dropouts = [m for m in self.model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
        for module in dropouts:
            module.eval()
        try:
            for p, start in self.began:
                p.data = start
            yield
        finally:
            for (p, _), data in zip(self.began, now, strict=True):
                p.data = data
            for module in dropouts:
                module.train()


class PairFeed(QwenFeed):
    """QwenFeed for pairs."""

    def batch(self, rows: Sequence[Encoded]) -> tuple[PairBatch, Any]:
        batch = collate_pairs(rows, self.device, self.packing)
        return batch, self.images.get(batch.images)


def collate_pairs(rows: Sequence[Encoded], device: torch.device, packing: bool = False) -> PairBatch:
    """Both chats of each pair, padded on the right or packed."""
    chosen, rejected = zip(*map(split_pair, rows), strict=True)
    chats = [*chosen, *rejected]
    batch = collate_train(chats, device, packing)
    return PairBatch(
        **vars(replace(batch, images=[image for row in rows for image in row.images])),
        answer_tokens=tuple(int(chat.labelled[1:].sum()) for chat in chats),
    )


class QwenPairs(QwenVL):
    """QwenVL for stage dpo. reference: None for a loss that needs none."""

    def __init__(self, recipe: Recipe, reference: Reference | None) -> None:
        self.recipe, self.reference = recipe, reference

    def feed(
        self,
        base: Any,
        reader: Reader,
        images: Sequence[int],
        reused: bool = False,
        processes_per_host: int = 1,
        folder: Path | None = None,
    ) -> PairFeed:
        return PairFeed(base, reader, images, reused, processes_per_host, folder)

    def loss(self, base: Any, noise: float) -> PreferenceLoss:
        return PreferenceLoss(base, self.recipe, self.reference, noise)


def reference_for(model: Any, recipe: Recipe) -> Reference | None:
    """The reference that the recipe's loss compares with, of the model before it is trained."""
    if not recipe.needs_reference:
        return None
    return Reference(model, keeps_reference(recipe))


def keeps_reference(recipe: Recipe) -> bool:
    """Whether the reference takes memory: a copy of what is trained, as it began."""
    began = recipe.adapter_name_or_path or recipe.additional_target
    return recipe.stage == "dpo" and recipe.needs_reference and bool(began)
