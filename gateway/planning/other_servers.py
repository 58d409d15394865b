"""The command that serves a model folder with another server as it was trained: image sizes, context, chat template."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from gateway.planning.types import Workload
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.ollama.architectures import find_architecture
from modelfiles.ollama.budget import context_needed, image_tokens
from modelfiles.ollama.image_limits import llama_server_command
from modelfiles.ollama.names import suggest_ollama_name

OTHER_SERVERS = ("llama-server", "ollama", "vllm", "sglang")
OWN_LIMITS = (0, 29, 0)  # the last Ollama that kept the model's own image sizes, which the others still do


def serve_command(folder: ModelFolder, server: str, workload: Workload, given: Path) -> str:
    """A shell line for one of OTHER_SERVERS, with the folder's path as it was `given`.

    Raises ValueError for an architecture whose images are not known.
    """
    if server == "ollama":
        return shlex.join(["lensmith", "modelfile", "install", str(given), "--name", suggest_ollama_name(folder.name)])
    context = _context(folder, workload)
    if server == "llama-server":
        return shlex.join(llama_server_command(folder, context))
    path, images = str(given), json.dumps({"image": max(1, workload.images)})
    limits = {name: pixels for name, pixels in zip(_LIMITS, folder.image_pixel_limits, strict=True) if pixels}
    if server == "vllm":
        command = ["vllm", "serve", path, "--max-model-len", str(context), "--limit-mm-per-prompt", images]
        command += ["--mm-processor-kwargs", json.dumps(limits)] if limits else []
    else:
        command = ["python", "-m", "sglang.launch_server", "--model-path", path, "--context-length", str(context)]
        command += ["--mm-process-config", json.dumps({"image": limits})] if limits else []
    source = folder.chat_template_and_source[1]
    if source == "chat_template.jinja":  # transformers 5 writes the template there alone; older servers do not look
        command += ["--chat-template", str(given / source)]
    return shlex.join(command)


_LIMITS = ("min_pixels", "max_pixels")


def _context(folder: ModelFolder, workload: Workload) -> int:
    """Tokens of a request: the caller's, or what its images need, and never more than the model's own."""
    architecture = find_architecture(folder.architecture)
    if workload.session_len:
        return workload.session_len
    if architecture is None:
        raise ValueError(f"what an image of {folder.architecture} costs is not known; give --session-len.")
    needed = context_needed(image_tokens(architecture, folder, workload.image_size, OWN_LIMITS), workload.images)
    return min(needed, folder.max_position_embeddings or needed)
