"""The rules about what Ollama does to images: their size (MF222, MF223) and neighbours taken for one (MF411)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from modelfiles.checks.finding import Finding
from modelfiles.folder.image_processor import PROCESSOR, differing_limits, differing_pixels, image_processor_files
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.ollama.architectures import Architecture
from modelfiles.ollama.budget import IMAGE_MARKS, context_needed
from modelfiles.ollama.image_limits import (
    ImageTokens,
    fuses_images,
    llama_server_command,
    ollama_image_tokens,
    trained_image_tokens,
)  # fmt: skip
from modelfiles.ollama.versions import Version, version_text


def folder_image_findings(folder: ModelFolder, architecture: Architecture, ollama: Version) -> Iterator[Finding]:
    """Whether Ollama gives images other sizes than the folder's processor, which had them in training."""
    if architecture.resized_by_ollama and folder.preprocessor:
        allowed = ollama_image_tokens(architecture, ollama)
        trained = trained_image_tokens(folder)
        context = context_needed((trained.max or 4096) + IMAGE_MARKS, 1)
        context = min(context, folder.max_position_embeddings or context)
        source = next(iter(image_processor_files(folder.path)))
        yield from size_findings(trained, allowed, source, llama_server_command(folder, context))


def processor_findings(folder: ModelFolder) -> Iterator[Finding]:
    """MF224 for each way in which the two files of the image processor differ."""
    for difference in (differing_limits(folder.path), differing_pixels(folder.path)):
        if difference:
            yield Finding("MF224", f"what images become depends on the program: {difference}.", PROCESSOR)


def size_findings(trained: ImageTokens, allowed: ImageTokens | None, file: str, serve: list[str]) -> Iterator[Finding]:
    """MF222 and MF223 for limits of training and of Ollama. `serve`: a command that keeps to training's."""
    if allowed is None:
        return
    if 0 < trained.max < allowed.min:
        yield Finding(
            "MF222",
            f"training sized images to at most {trained.max} tokens, Ollama sizes them to {allowed.min} to "
            f"{allowed.max}. This keeps the sizes of training: {shlex.join(serve)}",
            file,
        )
    elif trained.min < allowed.min:
        yield Finding(
            "MF223",
            f"training left images down to {trained.min} tokens as they are, Ollama enlarges them to {allowed.min}.",
            file,
        )


def fused_findings(resized: bool, images: int, ollama: Version) -> Iterator[Finding]:
    """MF411 for a request of so many images. `resized`: whether the architecture is one that Ollama resizes for."""
    if images > 1 and fuses_images(resized, ollama):
        yield Finding(
            "MF411",
            f"Ollama {version_text(ollama)} takes two neighbouring images of equal size for one; begin each message "
            f"with {' '.join(['[img]'] * min(images, 3))}{' ...' if images > 3 else ''}, a blank between them.",
        )
