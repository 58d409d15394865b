"""Checks a model folder for what LMDeploy cannot load, or loads wrongly so that it answers nonsense.

Source of each rule: lmdeploy 0.18.0, the file named beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gateway.planning.doctor.machine import ERROR, OK, WARNING, MachineFinding
from gateway.planning.gpu import Gpu
from modelfiles.folder.files import positive_int
from modelfiles.folder.lmdeploy import PYTORCH_ARCHITECTURES
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.hardware.gpus import GIB

# Quantisations its PyTorch engine loads (pytorch/config.py, QuantizationConfig).
QUANTISATIONS = {"awq", "smooth_quant", "fp8", "compressed-tensors"}
# Files that make an image processor and a tokenizer (vl/model/base.py: AutoProcessor).
NEEDED = (("preprocessor_config.json", "processor_config.json"), ("tokenizer.json", "vocab.json", "tokenizer.model"))
# Above this, a kernel needs more shared memory than a Turing card has: 81,920 of 65,536 bytes (lmdeploy issue 4385).
TURING_HEAD_DIM = 128


def check_folder_for_lmdeploy(path: Path, gpu: Gpu | None) -> list[MachineFinding]:
    """Every finding about the folder; `gpu` is the card it is for."""
    try:
        folder = ModelFolder.open(path)
        size = sum(tensor.size for tensor in folder.tensors.values())
        found = [
            MachineFinding(
                OK, "model", f"{folder.name}: {folder.architecture or 'no architecture'}, {size / GIB:.2f} GiB"
            ),
            *_architecture(folder, gpu),
            *_token_ids(folder),
            *_head(folder),
            *_files(folder),
            *_quantisation(folder),
        ]
    except ModelFolderError as error:
        return [MachineFinding(ERROR, "model", str(error))]
    return found


def _architecture(folder: ModelFolder, gpu: Gpu | None) -> Iterator[MachineFinding]:
    if folder.architecture not in PYTORCH_ARCHITECTURES:
        what = f"LMDeploy's PyTorch engine has no {folder.architecture or 'architecture-less model'}."
        yield MachineFinding(
            WARNING, "architecture", what, "Serve it with --engine transformers, or another server's URL."
        )
    text = folder.text_config
    heads = positive_int(text.get("num_attention_heads"))
    head_dim = positive_int(text.get("head_dim")) or (positive_int(text.get("hidden_size")) // heads if heads else 0)
    if gpu is not None and gpu.capability < (8, 0) and head_dim > TURING_HEAD_DIM:
        what = f"Heads of {head_dim} need more shared memory than a {gpu.name} has."
        yield MachineFinding(ERROR, "head_dim", what, "Use a newer card, or --engine transformers.")


def _token_ids(folder: ModelFolder) -> Iterator[MachineFinding]:
    """pytorch/configurations/default.py reads both attributes; transformers 5 has no default for them."""
    missing = [key for key in ("bos_token_id", "eos_token_id") if key not in folder.text_config]
    if missing:
        known = {key: folder.generation_config.get(key) for key in missing}
        values = ", ".join(f'"{key}": {_first(value)}' for key, value in known.items() if _first(value) is not None)
        where = "text_config" if folder.text_config is not folder.config else "config.json"
        yield MachineFinding(
            ERROR,
            "config.json",
            f"{where} has no {' and no '.join(missing)}; LMDeploy ends with SystemExit: 1.",
            f"Add {values or 'both, from the base model'} to {where}.",
        )


def _first(value: object) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int else None


def _head(folder: ModelFolder) -> Iterator[MachineFinding]:
    """pytorch/models/utils/model.py: only a true tie_word_embeddings at the root makes the embedding the head."""
    tied = folder.config.get("tie_word_embeddings") is True
    if not tied and folder.tensors and not any(name.endswith("lm_head.weight") for name in folder.tensors):
        what = "There is no lm_head.weight, and tie_word_embeddings is not true at the root of config.json:"
        yield MachineFinding(
            ERROR,
            "config.json",
            f"{what} the head would be random.",
            'Add "tie_word_embeddings": true beside architectures.',
        )


def _files(folder: ModelFolder) -> Iterator[MachineFinding]:
    for names in NEEDED:
        if not any((folder.path / name).exists() for name in names):
            yield MachineFinding(ERROR, names[0], "Missing.", "Copy it from the base model.")
    if folder.chat_template is None:
        yield MachineFinding(ERROR, "chat template", "There is none.", "Copy chat_template.jinja from the base model.")
    # pytorch/weight_loader/model_weight_loader.py knows these two names only.
    if not any((folder.path / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        what = f"The weights are called {folder.shards[0].name}, without an index; LMDeploy does not find them."
        yield MachineFinding(
            ERROR, "weights", what, "Name them model.safetensors, or add model.safetensors.index.json."
        )


def _quantisation(folder: ModelFolder) -> Iterator[MachineFinding]:
    config = folder.config.get("quantization_config") or folder.text_config.get("quantization_config")
    method = config.get("quant_method") if isinstance(config, dict) else None
    if isinstance(config, dict) and method not in QUANTISATIONS:
        change = "Export the 16-bit weights (`lensmith export`), or quantise with AWQ."
        yield MachineFinding(ERROR, "quantization", f"LMDeploy does not load {method or 'this'} weights.", change)
