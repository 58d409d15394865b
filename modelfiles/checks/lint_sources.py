"""What `lint` says of FROM, ADAPTER and DRAFT: paths, folders and GGUF pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelfiles.checks.context import Context
from modelfiles.checks.finding import Finding, finding_at
from modelfiles.checks.image_rules import fused_findings, size_findings
from modelfiles.folder.files import positive_int
from modelfiles.folder.gguf_header import GgufError, read_gguf_metadata
from modelfiles.language.grammar import Command
from modelfiles.ollama.image_limits import OLLAMA_QWEN_VL, RESIZED_GGUF_ARCHITECTURES, ImageTokens
from modelfiles.ollama.versions import LLAMA_SERVER, version_text


def source_findings(commands: list[Command], folder: Path, context: Context) -> Iterator[Finding]:
    files: list[tuple[Command, Path]] = []
    for command in commands:
        if command.name not in ("model", "adapter", "draft"):
            continue
        path = local_path(command.args, folder)
        if path is None or not path.exists():
            if path is not None or command.name != "model":
                yield finding_at(
                    "MF309", f"{command.args!r} does not exist, so Ollama takes it as a model's name.", command
                )
        elif path.is_dir():
            found = importable_files(path)
            if not found:
                yield finding_at("MF310", f"{command.args!r} holds no model*.safetensors and no *.gguf.", command)
            files += [(command, file) for file in found if file.suffix == ".gguf"]
        elif command.name == "model":
            files.append((command, path))
    yield from _gguf_files(files, context)


def _projector_sizes(projector: dict[str, Any], context: Context) -> Iterator[Finding]:
    """The image sizes that an mmproj names, beside those of Ollama."""
    patch, merge, low, high = (
        positive_int(projector.get(f"clip.vision.{name}"))
        for name in ("patch_size", "spatial_merge_size", "image_min_pixels", "image_max_pixels")
    )
    if patch and high and context.ollama >= LLAMA_SERVER:
        unit = (patch * (merge or 1)) ** 2
        trained = ImageTokens(low // unit, high // unit)
        serve = ["--image-min-tokens", str(trained.min), "--image-max-tokens", str(trained.max)]
        serve = ["llama-server", "-m", "model.gguf", "--mmproj", "mmproj.gguf", *serve]
        yield from size_findings(trained, OLLAMA_QWEN_VL, "", serve)


def local_path(args: str, folder: Path) -> Path | None:
    """The path that FROM or ADAPTER means, or None if it can only be a model's name."""
    path = Path(args).expanduser() if args.startswith("~") else folder / args
    looks_like_path = args.startswith((".", "/", "~")) or args.endswith((".gguf", ".safetensors", ".bin"))
    return path if looks_like_path or path.exists() else None


def importable_files(path: Path) -> list[Path]:
    """What Ollama would take from a folder: it tries these patterns in order."""
    for pattern in ("model*.safetensors", "consolidated*.safetensors", "pytorch_model*.bin", "*.gguf"):
        found = sorted(path.glob(pattern))
        if found:
            return found
    return []


def _gguf_files(files: list[tuple[Command, Path]], context: Context) -> Iterator[Finding]:
    """The rules about a GGUF pair; a folder or name without GGUF has none."""
    metadata = []
    for command, path in files:
        try:
            metadata.append((command, read_gguf_metadata(path)))
        except GgufError as error:
            yield finding_at("MF502", f"{error}.", command)
    models = [(c, data) for c, data in metadata if data.get("general.type", "model") == "model"]
    projectors = [(c, data) for c, data in metadata if data.get("general.type") == "mmproj"]
    if any(data.get("general.architecture") in RESIZED_GGUF_ARCHITECTURES for _, data in models):
        for command, data in projectors:
            images = context.images_per_request
            findings = [*_projector_sizes(data, context), *fused_findings(True, images, context.ollama)]
            yield from (replace(finding, file="", line=command.line, column=command.column) for finding in findings)
    for command, data in models:
        architecture = str(data.get("general.architecture", ""))
        if not projectors and "vl" in architecture:
            yield finding_at("MF501", f"the model is a {architecture} but no mmproj comes with it.", command)
        width = data.get(f"{architecture}.embedding_length")
        for second, projector in projectors:
            out = projector.get("clip.vision.projection_dim")
            # Qwen3-VL's deepstack widens the model's input; its mmproj says only the width of one part.
            if width and out and width != out:
                yield finding_at("MF504", f"the mmproj makes vectors of {out}, the model takes {width}.", second)
    if projectors and context.ollama < LLAMA_SERVER:
        yield finding_at("MF503", f"this is for Ollama {version_text(context.ollama)}.", projectors[0][0])
