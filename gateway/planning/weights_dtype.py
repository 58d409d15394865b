"""The number format an engine computes in on a card."""

from __future__ import annotations

from gateway.planning.gpu import Gpu
from gateway.planning.types import Choice
from modelfiles.folder.model_folder import ModelFolder


def weights_dtype(folder: ModelFolder, gpu: Gpu) -> Choice:
    """`--dtype` of LMDeploy and of vLLM."""
    named = folder.text_config.get("dtype") or folder.text_config.get("torch_dtype")
    named = named or folder.config.get("dtype") or folder.config.get("torch_dtype")
    if not gpu.bf16:
        capability = "{}.{}".format(*gpu.capability)
        return Choice("dtype", "float16", f"compute capability {capability} has no bfloat16")
    if named == "float16":
        return Choice("dtype", "float16", "the model's own")
    return Choice("dtype", "bfloat16", "the model's own" if named == "bfloat16" else "float32's range in 16 bit")
