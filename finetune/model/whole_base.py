"""Checks, from the headers of its files alone, that a base is whole: what transformers would fill with random numbers,
pass over or read as something else is refused before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch

from finetune.errors import FinetuneError
from finetune.model.tensors import DTYPES
from modelfiles.adapter.names import names_of_all_versions
from modelfiles.folder.files import read_json
from modelfiles.folder.model_folder import ModelFolder

COMPUTED = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")  # older checkpoints hold them; the model makes them anew


def refuse_quantised(folder: ModelFolder) -> None:
    """Raises FinetuneError if the base's weights are already quantised, whatever by.

    4-bit bases of bitsandbytes are refused too: their vision towers and mergers are often quantised as well, and an
    adapter can be merged into the original alone.
    """
    settings = folder.config.get("quantization_config") or folder.text_config.get("quantization_config")
    if isinstance(settings, dict):
        method = str(settings.get("quant_method") or "an unknown method")
        raise FinetuneError(
            f"{folder.path} is already quantised ({method}), so adapters could not be merged into it; train on the "
            "16-bit model that it was made of, with quantization_bit: 4 for QLoRA."
        )


def refuse_incomplete(folder: ModelFolder) -> None:
    """Raises FinetuneError unless the files hold exactly the weights of the model that config.json describes."""
    expected = _expected(folder)
    used: set[str] = set()
    missing, misshaped = [], []
    for name, shape in expected.items():
        found = [candidate for candidate in names_of_all_versions(name) if candidate in folder.tensors]
        used.update(found)
        if not found and not (name == "lm_head.weight" and _is_tied(folder)):
            missing.append(name)
        misshaped += [
            f"{one} is {list(folder.tensors[one].shape)} instead of {list(shape)}"
            for one in found
            if tuple(folder.tensors[one].shape) != shape
        ]
    unknown = [name for name in folder.tensors if name not in used and not name.endswith(COMPUTED)]
    wrong = [f"{name} is {info.dtype}" for name, info in folder.tensors.items() if info.dtype not in DTYPES]
    for names, what in (
        (missing, "lacks {count} of its weights, such as {first}; fetch the model again"),
        (misshaped, "has weights of other shapes than config.json says: {first}; fetch the model again"),
        (unknown, "has {count} weights that transformers would pass over, such as {first}; is it of another version?"),
        (wrong, "has weights that are no 16-bit or 32-bit numbers: {first}; use the model that was not quantised"),
    ):
        if names:
            raise FinetuneError(f"{folder.path} {what.format(count=len(names), first=names[0])}.")
    _refuse_larger_tokenizer(folder)


def _expected(folder: ModelFolder) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the model's weights, as the installed transformers has them."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(folder.path, local_files_only=True)
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FinetuneError(f"{folder.path}: transformers cannot read its config.json: {reason}") from None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _is_tied(folder: ModelFolder) -> bool:
    """Whether the output is the embedding: what config.json says, or the family's default where it says nothing."""
    for holder in (folder.config, folder.text_config):
        if "tie_word_embeddings" in holder:
            return bool(holder["tie_word_embeddings"])
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder.path, local_files_only=True)
    return bool(config.tie_word_embeddings)


def _refuse_larger_tokenizer(folder: ModelFolder) -> None:
    rows = [info.shape[0] for name, info in folder.tensors.items() if name.endswith("embed_tokens.weight")]
    if not rows or not (folder.path / "tokenizer.json").exists():
        return
    model = read_json(folder.path, "tokenizer.json").get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens = {number: text for text, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    tokens |= {number: text for number, (text, _) in folder.added_tokens.items()}
    last = max(tokens, default=0)
    if last >= max(rows):
        raise FinetuneError(
            f"{folder.path}: its tokenizer's {tokens[last]!r} is token {last}, but its embedding has {max(rows)} rows; "
            "resize the embeddings (transformers: resize_token_embeddings) or use the base's own tokenizer."
        )
