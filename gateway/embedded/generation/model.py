"""Loading a model folder for the embedded engine."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from gateway.embedded.generation.adapters import Adapters
from gateway.embedded.generation.grammar import GrammarCompiler
from gateway.embedded.generation.text import TokenBytes
from gateway.embedded.protocol import SamplingParams
from gateway.errors import ApiError
from modelfiles import counted
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate. context: the most tokens of prompt and answer together; eos_ids end an answer."""

    model: Any
    adapters: Adapters
    processor: Any
    token_bytes: TokenBytes
    grammars: GrammarCompiler
    defaults: SamplingParams
    context: int
    vocab_size: int
    eos_ids: frozenset[int]
    pad_id: int


def load_model(folder: ModelFolder, dtype: str, adapters: Mapping[str, Path]) -> LoadedModel:
    """Loads the folder's model onto the GPU if there is one, else onto the CPU, and the adapters beside it.

    dtype: float32, bfloat16, float16 or auto: float32 on a CPU, because an answer must not depend on its neighbours in
    the batch, and 16 bits round differently for each batch size; the folder's own on a GPU. Raises ModelFolderError
    or AdapterError.
    """
    if "sanitize_control_tokens" not in inspect.signature(transformers.ProcessorMixin.apply_chat_template).parameters:
        raise ModelFolderError(
            f"transformers {transformers.__version__} is too old for the embedded engine; install 5.23."
        )
    if not folder.max_position_embeddings:
        raise ModelFolderError("config.json does not say max_position_embeddings.")
    if not folder.chat_template:
        raise ModelFolderError("it has no chat template; add chat_template.jinja.")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    try:
        defaults = SamplingParams.from_generation_config(folder.generation_config)
    except ApiError as error:
        raise ModelFolderError(f"generation_config.json: {error}") from None
    processor = AutoProcessor.from_pretrained(folder.path, local_files_only=True)
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder.path, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    absent = sorted(info["missing_keys"])
    if absent:
        raise ModelFolderError(f"the weights lack {counted(len(absent), 'tensor')}, {absent[0]} among them.")
    tokenizer = processor.tokenizer
    eos_ids = (frozenset(folder.eos_token_ids) | {tokenizer.eos_token_id}) - {None}
    vocab_size = model.config.get_text_config().vocab_size
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.to(device).eval()
    # The engine samples by itself: nothing of the folder's generation_config.json may act inside generate.
    model.generation_config = GenerationConfig(pad_token_id=pad_id)
    return LoadedModel(
        model=model,
        adapters=Adapters(model, folder, adapters),
        processor=processor,
        token_bytes=TokenBytes(tokenizer),
        grammars=GrammarCompiler(tokenizer, vocab_size, eos_ids),
        defaults=defaults,
        context=folder.max_position_embeddings,
        vocab_size=vocab_size,
        eos_ids=eos_ids,
        pad_id=pad_id,
    )
