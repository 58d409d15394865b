"""Which servers will load what a recipe makes: what loads the base, for merging leaves its layout as it is."""

from __future__ import annotations

from modelfiles.doctor import check_folder
from modelfiles.families import find_family
from modelfiles.folder import ModelFolder
from modelfiles.versions import show

# LMDeploy's other engine: lmdeploy/turbomind/supported_models.py, version 0.18.
TURBOMIND = ("qwen2_vl", "qwen2_5_vl")


def servers(folder: ModelFolder) -> list[tuple[str, bool, str]]:
    """(server, whether it loads the merged model, how or why not) for a base of one of the trained families."""
    engine = "PyTorch or TurboMind engine" if folder.model_type in TURBOMIND else "PyTorch engine; TurboMind has it not"
    rows = [
        ("lensmith serve", True, "with the embedded engine, or LMDeploy's PyTorch engine on a GPU"),
        ("LMDeploy 0.18", True, engine),
    ]
    family = find_family(folder.architecture)
    if family is None:
        return [*rows, ("Ollama", False, f"it does not know {folder.architecture}")]
    route = family.routes[0]
    errors = [finding for finding in check_folder(folder.path, route) if finding.severity == "error"]
    since = show(family.since or family.gguf_since)
    how = f"{since} or later, from {'the folder' if route == 'safetensors' else 'a GGUF that llama.cpp makes of it'}"
    return [*rows, ("Ollama", not errors, f"{errors[0].rule}: {errors[0].message}" if errors else how)]
