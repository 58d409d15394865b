"""Whether the servers that a recipe names keep the image sizes of its training."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.media.pixel_limits import pixel_limits
from finetune.recipe.schema import Recipe
from modelfiles.folder.image_processor import differing_limits
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.ollama.architectures import find_architecture
from modelfiles.ollama.image_limits import image_unit, ollama_image_tokens
from modelfiles.ollama.versions import NEWEST


def size_warnings(recipe: Recipe, folder: ModelFolder) -> Iterator[str]:
    """One sentence for each limit that Ollama does not keep, with the keys to change, or that the base says twice.

    Lensmith's engine and LMDeploy keep every size: they read the merged model's own limits. Raises FinetuneError.
    """
    if difference := differing_limits(folder.path):
        yield f"The base says {difference}; training goes by the first, and export writes its limits to both."
    architecture = find_architecture(folder.architecture)
    if "ollama" not in (recipe.serve_with or "") or architecture is None or not architecture.resized_by_ollama:
        return
    served = ollama_image_tokens(architecture, NEWEST)
    if served is None:
        return
    trained, square = pixel_limits(folder, recipe), image_unit(folder) ** 2
    sizes = f"Ollama makes every image {served.min} to {served.max} tokens"
    if trained.max_pixels < served.min * square:
        yield (
            f"serve_with: {sizes}; training ends at {trained.max_pixels // square}, so answers there will be wrong. "
            f"Set image_min_pixels: {served.min * square}{_own_limit(recipe, folder, served.min * square)}."
        )
        return
    if trained.min_pixels < served.min * square:
        yield f"serve_with: {sizes}; smaller ones are enlarged. Set image_min_pixels: {served.min * square}."
    if trained.max_pixels > served.max * square:
        yield f"serve_with: {sizes}; larger ones are shrunk. Set image_max_pixels: {served.max * square}."


def _own_limit(recipe: Recipe, folder: ModelFolder, needed: int) -> str:
    """What else stands in the way: image_max_pixels, or the base's own limit, which no key raises."""
    own = folder.image_pixel_limits[1]
    if own < needed:
        return f", and in the base's preprocessor_config.json, which ends at {own} pixels, size.longest_edge as well"
    return " and unset image_max_pixels" if recipe.image_max_pixels else ""
