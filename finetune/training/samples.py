"""A few rows answered by the model as it was and as it is trained, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from finetune.encoding.encoded import Encoded
from finetune.families.base import Feed
from finetune.families.preference import chosen_chat
from finetune.model.base import dropout, keep_activations
from finetune.model.changes import base_tensor
from finetune.model.tensors import read_tensor
from finetune.reporting.sample import Sample
from finetune.training.dataset import TrainingData

SHOWN = 12  # rows in the report
MAX_ANSWER_TOKENS = 64  # tokens of an answer


def answer_samples(
    model: Any, base: Any, data: TrainingData, feed: Feed, dtype: torch.dtype, max_new_tokens: int, size: int,
    pairs: bool = False,
) -> list[Sample]:  # fmt: skip
    """Answers some validation rows (training rows if there are none), at most `max_new_tokens` tokens long.

    To be called when nothing more is to be trained or saved: the model is left as it was before training.
    model: as trained; base: the *ForConditionalGeneration module in it; feed: those rows'; size: rows answered at
    once, no more than training held, so that the memory suffices; pairs: whether rows are pairs, of which the chosen
    answer is shown as the label.
    """
    parts = [last_answer(row, pairs) for row in _spread(data.validation or data.rows, SHOWN)]
    keep_activations(base)  # checkpointing would drop the key-value cache
    dropout(model, False)
    after = _answers(
        base, data, feed, [prompt for prompt, _ in parts], dtype, min(max_new_tokens, MAX_ANSWER_TOKENS), size
    )
    _restore_base(model, data)
    before = _answers(
        base, data, feed, [prompt for prompt, _ in parts], dtype, min(max_new_tokens, MAX_ANSWER_TOKENS), size
    )
    tokenizer = data.processor.tokenizer
    return [
        Sample(
            images=[data.bank.paths[index] for index in prompt.images],
            question=feed.question(prompt),
            label=tokenizer.decode(label, skip_special_tokens=True).strip(),
            before=old,
            after=new,
        )
        for (prompt, label), old, new in zip(parts, before, after, strict=True)
    ]


def current_answers(
    base: Any, data: TrainingData, feed: Feed, dtype: torch.dtype, max_new_tokens: int, size: int, rows: int,
    pairs: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """What the model answers now to some validation rows: images (paths), question, label and answer of each.

    To be called with dropout off and activation checkpointing off. Arguments as of `answer_samples`.
    """
    parts = [last_answer(row, pairs) for row in _spread(data.validation, rows)]
    answers = _answers(
        base, data, feed, [prompt for prompt, _ in parts], dtype, min(max_new_tokens, MAX_ANSWER_TOKENS), size
    )
    tokenizer = data.processor.tokenizer
    return [
        {
            "images": [str(data.bank.paths[index]) for index in prompt.images],
            "question": feed.question(prompt),
            "label": tokenizer.decode(label, skip_special_tokens=True).strip(),
            "answer": answer,
        }
        for (prompt, label), answer in zip(parts, answers, strict=True)
    ]


def _spread(rows: Sequence[Encoded], n: int) -> list[Encoded]:
    """At most `n` of the rows, evenly spread over them."""
    return [rows[round(at)] for at in np.linspace(0, len(rows) - 1, min(n, len(rows)))]


def last_answer(row: Encoded, pairs: bool) -> tuple[Encoded, Any]:
    """A chat, or that with a pair's chosen answer, up to its last answer, and the ids of that answer."""
    row = chosen_chat(row) if pairs else row
    return row.until(row.last_answer), row.ids[row.last_answer :]


def _answers(
    base: Any,
    data: TrainingData,
    feed: Feed,
    prompts: Sequence[Encoded],
    dtype: torch.dtype,
    max_new_tokens: int,
    size: int,
) -> list[str]:
    device = base.lm_head.weight.device
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with autocast, torch.no_grad():
        ids = dict(feed.generate(prompts, max_new_tokens, size))
    tokenizer = data.processor.tokenizer
    return [tokenizer.decode(ids[index], skip_special_tokens=True).strip() for index in range(len(prompts))]


def _restore_base(model: Any, data: TrainingData) -> None:
    """Turns the adapter off, or puts the base's own weights back."""
    if hasattr(model, "peft_config"):
        model.base_model.disable_adapter_layers()
        base = model.get_base_model()
        embeddings = base.get_input_embeddings()
        if (
            hasattr(embeddings, "modules_to_save")
            and base.lm_head.weight is embeddings.modules_to_save["default"].weight
        ):
            base.lm_head.weight = embeddings.original_module.weight
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(read_tensor(base_tensor(data.folder, name)[1]))
