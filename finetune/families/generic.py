"""Any other vision-language model: its processor makes its inputs, its own forward pass the logits.

Nothing is known of the family but what transformers' interfaces say, so nothing of an image is kept from step to step:
the vision tower runs in each forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import lengths_of
from finetune.encoding.processor_encoder import ProcessedChat, ProcessorEncoder, processed
from finetune.errors import FinetuneError
from finetune.families.base import Reader
from finetune.families.batch import Batch
from finetune.families.features import THREADS
from finetune.media.bank import SizedImages
from finetune.media.image_files import decode
from finetune.model.supported import refuse_keys
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder

ROWS = 8  # answered at once, unless the recipe says how many


class OtherVL:
    """family.Family for what transformers loads as image-text-to-text."""

    def read(self, folder: ModelFolder, recipe: Recipe) -> Reader:
        from transformers import AutoProcessor

        refuse_keys(folder, recipe)
        try:
            processor = AutoProcessor.from_pretrained(folder.path, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise FinetuneError(f"{folder.path}: transformers cannot load its processor: {reason}") from None
        if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
            raise FinetuneError(f"{folder.path} has no processor for images and text; copy the base's files.")
        bank = SizedImages()
        return Reader(folder, processor, bank, ProcessorEncoder(folder, processor, bank))

    def feed(
        self,
        base: Any,
        reader: Reader,
        images: Sequence[int],
        reused: bool = False,
        processes_per_host: int = 1,
        folder: Path | None = None,
    ) -> ProcessorFeed:
        return ProcessorFeed(base, reader)

    def loss(self, base: Any, noise: float) -> Any:
        return ProcessedLoss(base)


class ProcessedLoss(torch.nn.Module):  # type: ignore[misc]
    """The summed cross entropy (float32) of a batch's label tokens; logits exist only at those positions.

    What a model does with its logits (Gemma caps them, Cohere and Granite scale them) it does itself: all that is
    changed in its forward pass is which hidden states its output head gets.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.noisy = base, False
        self.measured: list[float] = []

    def parts(self, batch: Batch) -> int:
        """The label tokens."""
        return len(batch.labels)

    def forward(self, batch: Batch, inputs: dict[str, Any]) -> Any:
        """inputs: what the processor made of the batch."""
        hook = self.base.lm_head.register_forward_pre_hook(lambda _, states: (states[0][batch.labelled][None],))
        try:
            logits = self.base(**inputs, use_cache=False).logits
        except ValueError as error:  # images and image tokens that do not match, which only the model can tell
            raise FinetuneError(
                f"{'; '.join(batch.rows)}: {type(self.base).__name__} does not take what its processor made of these "
                f"rows: {str(error).splitlines()[0][:200]}"
            ) from None
        finally:
            hook.remove()
        if logits.shape[:2] != (1, len(batch.labels)):
            raise FinetuneError(
                f"{type(self.base).__name__} makes its logits in a way that is not known here; use another model."
            )
        return torch.nn.functional.cross_entropy(logits[0].float(), batch.labels, reduction="sum")


class ProcessorFeed:
    """family.Feed: the processor gets the rows' texts and images, decoded in threads, a batch ahead."""

    def __init__(self, base: Any, reader: Reader) -> None:
        self.base, self.processor, self.bank = base, reader.processor, reader.bank
        self.device, self.eos = base.lm_head.weight.device, reader.folder.eos_token_ids
        self.dtype = base.lm_head.weight.dtype
        self.pool = ThreadPoolExecutor(THREADS)
        self.feeder = ThreadPoolExecutor(1)
        self._coming: dict[tuple[Any, ...], Future[dict[str, Any]]] = {}

    def prefetch(self, rows: Sequence[Encoded]) -> None:
        key = _key(rows)
        if key not in self._coming:
            self._coming[key] = self.feeder.submit(self._process, rows, "right")

    def batch(self, rows: Sequence[Encoded]) -> tuple[Batch, dict[str, Any]]:
        coming = self._coming.pop(_key(rows), None)
        inputs = self._moved(coming.result() if coming else self._process(rows, "right"))
        ids = inputs["input_ids"]
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            mask[number, : len(row)] = torch.from_numpy(row.labelled)
        mask = mask.to(self.device)
        labelled = torch.nn.functional.pad(mask[:, 1:], (0, 1))
        batch = Batch(
            ids=ids,
            positions=None,
            attended=inputs.get("attention_mask"),
            images=[image for row in rows for image in row.images],
            labelled=labelled,
            labels=ids[:, 1:][mask[:, 1:]],
            rows=tuple(row.source for row in rows),
        )
        return batch, inputs

    def generate(
        self, prompts: Sequence[Encoded], max_new_tokens: int, rows: int | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        order = np.argsort(-lengths_of(prompts), kind="stable").tolist()
        size = rows or ROWS
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            yield from zip(indices, self._answers([prompts[index] for index in indices], max_new_tokens), strict=True)

    def _answers(self, prompts: Sequence[Encoded], max_new_tokens: int) -> list[list[int]]:
        from transformers import GenerationConfig

        inputs = self._moved(self._process(prompts, "left"))
        padding = self.processor.tokenizer.pad_token_id
        # The folder's own settings may sample or punish repetition, which is not greedy.
        self.base.generation_config = GenerationConfig(
            eos_token_id=list(self.eos), pad_token_id=self.eos[0] if padding is None else padding
        )
        made = self.base.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        answers = []
        for ids in made[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((at for at, token in enumerate(ids) if token in self.eos), len(ids))
            answers.append(ids[:end])
        return answers

    def question(self, prompt: Encoded) -> str:
        assert isinstance(prompt, ProcessedChat)
        return prompt.question

    def close(self) -> None:
        for pool in (self.feeder, self.pool):
            pool.shutdown(cancel_futures=True)

    def _process(self, rows: Sequence[Encoded], side: str) -> dict[str, Any]:
        """The processor's tensors, on the CPU. Raises FinetuneError if its ids are not the rows'."""
        sources, texts, images = [row.source for row in rows], [], []
        for row in rows:
            assert isinstance(row, ProcessedChat)
            texts.append(row.text)
            images.append(list(self.pool.map(decode, [self.bank.paths[index] for index in row.images])))
        inputs = processed(self.processor, sources, texts, images, side)
        for row, ids in zip(rows, inputs["input_ids"], strict=True):
            ours = torch.from_numpy(row.ids)
            mine = ids[: len(ours)] if side == "right" else ids[len(ids) - len(ours) :]
            if not torch.equal(mine, ours):
                raise FinetuneError(
                    f"{row.source}: the model's processor gives other ids in a batch than alone, or an image is not of "
                    "the size that its header said."
                )
        return inputs

    def _moved(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The same on the model's device, numbers in its dtype."""
        moved = {}
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor):
                dtype = self.dtype if value.is_floating_point() else value.dtype
                moved[name] = value.to(self.device, dtype, non_blocking=True)
            else:
                moved[name] = value
        return moved


def _key(rows: Sequence[Encoded]) -> tuple[Any, ...]:
    return tuple((row.source, row.images) for row in rows)
