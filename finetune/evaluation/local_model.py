"""Greedy answers of a base model with its adapter, in batches on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from finetune.data.datasets import Dataset
from finetune.data.formats import Row
from finetune.encoding.boxes import PlacedRows
from finetune.encoding.encode_rows import encode_sound
from finetune.errors import FinetuneError
from finetune.evaluation.served_sizes import sized_as_served
from finetune.families.registry import family_of
from finetune.model.base import load_base
from finetune.model.changes import plan_changes, read_trained
from finetune.model.device import pick_device, pick_dtype
from finetune.model.folder import open_base
from finetune.model.trained import load_trained
from finetune.model.trained_by import weights_digest, with_training_limits
from finetune.recipe.schema import Recipe
from modelfiles import counted


class LocalModel:
    """The recipe's base and adapter. Reads and checks the prompts at once; the weights when answers are wanted."""

    def __init__(self, recipe: Recipe, data: Dataset, console: Console) -> None:
        self.folder = open_base(recipe)
        if recipe.adapter_name_or_path:  # as strictly as `export`: nothing that was trained may be passed over
            plan_changes(self.folder, read_trained(Path(recipe.adapter_name_or_path), self.folder))
        recipe = with_training_limits(recipe)
        if recipe.image_sizes:
            recipe, self.folder = sized_as_served(recipe, self.folder)
        self.recipe = recipe
        self.device = pick_device()
        self.dtype, reason = pick_dtype(recipe, self.device)
        console.print(f"Compute dtype {reason}.", highlight=False)
        self.family = family_of(self.folder)
        self.reader = self.family.read(self.folder, recipe)
        self.rows: Sequence[Row] = PlacedRows(data.rows, self.reader.encoder, self.folder.model_type, recipe)
        self.prompts = encode_sound(self.rows, self.reader.encoder, data.rows.source, prompts=True)
        too_long = np.flatnonzero(self.prompts.lengths > recipe.cutoff_len).tolist()
        if too_long:
            key = "video_max_pixels" if self.reader.bank.clips else "image_max_pixels"
            raise FinetuneError(
                f"{data.rows.source(too_long[0])}: the prompt has {self.prompts.lengths[too_long[0]]} tokens, over "
                f"cutoff_len {recipe.cutoff_len} ({counted(len(too_long), 'such row')}); raise cutoff_len or lower "
                f"{key}."
            )
        self.identity = _identity(recipe, self.folder.fingerprint(), data.digest, bool(self.reader.bank.clips))

    def answer(self, open_rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        """As many at once as the recipe says, or else as the memory holds."""
        recipe, prompts = self.recipe, self.prompts.take(np.array(open_rows, np.int64))
        model = load_base(self.folder, recipe, self.device, self.dtype)
        if recipe.adapter_name_or_path:
            load_trained(model, recipe.adapter_name_or_path)  # adapters work inside the base
        feed = self.family.feed(model, self.reader, prompts.media.flat.tolist())
        autocast = nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)
        tokenizer = self.reader.processor.tokenizer
        asked = "per_device_eval_batch_size" in recipe.model_fields_set
        answers = feed.generate(prompts, recipe.max_new_tokens, recipe.per_device_eval_batch_size if asked else None)
        try:
            while True:
                with autocast, torch.no_grad():
                    found = next(answers, None)
                if found is None:
                    return
                yield open_rows[found[0]], tokenizer.decode(found[1], skip_special_tokens=True)
        finally:
            feed.close()


def _identity(recipe: Recipe, base: str, data: str, videos: bool) -> str:
    """A sha256 of all that decides the answers."""
    digest = hashlib.sha256(f"{base} {data} {recipe.max_new_tokens} {recipe.quantization_bit}".encode())
    digest.update(f"{recipe.image_min_pixels} {recipe.image_max_pixels} {recipe.fp16} {recipe.bf16}".encode())
    if recipe.image_sizes:
        digest.update(recipe.image_sizes.encode())
    if recipe.box_format:
        digest.update(recipe.box_format.encode())
    if videos:
        keys = (recipe.video_min_pixels, recipe.video_max_pixels, recipe.video_fps, recipe.video_maxlen)
        digest.update(str(keys).encode())
    if recipe.adapter_name_or_path:
        digest.update(weights_digest(Path(recipe.adapter_name_or_path)).encode())
    return digest.hexdigest()
