"""Which servers load what a recipe makes. Those that load the base do: merging changes no name, shape or layout."""

from __future__ import annotations

from finetune.model.supported import QWEN_VL
from modelfiles.checks.doctor import check_folder
from modelfiles.checks.rules import prevents_import
from modelfiles.folder.lmdeploy import PYTORCH_ARCHITECTURES, TURBOMIND_ARCHITECTURES
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.ollama.architectures import find_architecture
from modelfiles.ollama.versions import version_text


def servers(folder: ModelFolder) -> list[tuple[str, bool, str]]:
    """(server, whether it loads the merged model, how or why not) for a base that can be trained."""
    listed = folder.architecture in PYTORCH_ARCHITECTURES
    turbomind = folder.architecture in TURBOMIND_ARCHITECTURES
    if folder.model_type in QWEN_VL:
        embedded = "with the embedded engine, or LMDeploy's PyTorch engine on a GPU"
        engine = "PyTorch or TurboMind engine" if turbomind else "PyTorch engine; TurboMind has it not"
    else:
        embedded = "with the embedded engine, as transformers loads it; not tried with each family"
        engine = f"its PyTorch engine lists {folder.architecture}" if listed else f"it has no {folder.architecture}"
        engine += ", and so does TurboMind" if turbomind else ""
    return [("lensmith serve", True, embedded), ("LMDeploy 0.18", listed, engine), _ollama(folder)]


def _ollama(folder: ModelFolder) -> tuple[str, bool, str]:
    family = find_architecture(folder.architecture)
    if family is None:
        return "Ollama", False, f"Lensmith knows no way of {folder.architecture} into it"
    route = family.routes[0]
    errors = [finding for finding in check_folder(folder.path, route) if prevents_import(finding.rule)]
    since = version_text(family.since or family.gguf_since)
    how = f"{since} or later, from {'the folder' if route == 'safetensors' else 'a GGUF that llama.cpp makes of it'}"
    return "Ollama", not errors, f"{errors[0].rule}: {errors[0].message}" if errors else how
