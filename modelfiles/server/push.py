"""Creates a model on an Ollama server through its API: no Modelfile text in between, so every character survives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelfiles.checks.lint_sources import local_path
from modelfiles.folder.files import regular_file
from modelfiles.language.create_request import create_request
from modelfiles.language.grammar import Command
from modelfiles.server.client import OllamaClient, OllamaError, Progress, file_digest

# What Ollama's own client takes from a folder besides the weights (parser/parser.go, filesForModel).
COMPANIONS = ("*.json", "chat_template.jinja", "tokenizer.model")
WEIGHTS = ("model*.safetensors", "*.gguf")
NOT_SENT = ("modelfile.lock.json", "lensmith.json")


def files_to_send(commands: list[Command], folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The files behind FROM and behind ADAPTER, by the name the request gives them. Raises OllamaError."""
    models: dict[str, Path] = {}
    adapters: dict[str, Path] = {}
    for command in commands:
        if command.name not in ("model", "adapter"):
            continue
        path = local_path(command.args, folder)
        if path is None:
            continue
        found = _folder_files(path) if path.is_dir() else {path.name: path} if path.is_file() else {}
        if not found:
            raise OllamaError(f"{command.args} holds no model that Ollama could import.")
        (models if command.name == "model" else adapters).update(found)
    return models, adapters


def push(
    server: OllamaClient, name: str, commands: list[Command], folder: Path, progress: Progress, quantize: str = ""
) -> Iterator[str]:
    """Uploads what the server lacks and creates the model, yielding status lines.

    `progress` hears of each byte twice: when it is hashed, and when it is sent or found to be there. Raises OllamaError
    and RequestError.
    """
    request: dict[str, Any] = {"model": name, **create_request(commands)}
    models, adapters = files_to_send(commands, folder)
    for key, files in (("files", models), ("adapters", adapters)):
        digests = {}
        for file_name, path in files.items():
            digests[file_name] = digest = file_digest(path, progress)
            if server.has_blob(digest):
                progress(path.stat().st_size)
            else:
                yield f"uploading {file_name}"
                server.upload(path, digest, progress)
        if digests:
            request[key] = digests
    if models:
        del request["from"]
    if quantize:
        request["quantize"] = quantize
    yield from server.create(request)


def total_bytes(commands: list[Command], folder: Path) -> int:
    """What `progress` will have heard of in the end."""
    models, adapters = files_to_send(commands, folder)
    return 2 * sum(path.stat().st_size for path in [*models.values(), *adapters.values()])


def _folder_files(folder: Path) -> dict[str, Path]:
    folder = folder.resolve()
    for pattern in WEIGHTS:
        weights = sorted(folder.glob(pattern))
        if weights:
            small = [path for wanted in COMPANIONS for path in sorted(folder.glob(wanted)) if path.name not in NOT_SENT]
            return {path.name: regular_file(folder, path.name) for path in [*weights, *small]}
    return {}
