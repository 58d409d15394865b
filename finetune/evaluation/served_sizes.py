"""Images in the sizes that another server gives them: what its answers lose is known before anything is installed."""

from __future__ import annotations

from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.ollama.architectures import find_architecture
from modelfiles.ollama.image_limits import ollama_pixel_limits
from modelfiles.ollama.versions import NEWEST


def sized_as_served(recipe: Recipe, folder: ModelFolder) -> tuple[Recipe, ModelFolder]:
    """The recipe and folder with Ollama's limits of image sizes in place of training's.

    Raises FinetuneError for an architecture whose sizes in Ollama are not known.
    """
    architecture = find_architecture(folder.architecture)
    limits = ollama_pixel_limits(folder, architecture, NEWEST) if architecture else None
    if limits is None:
        raise FinetuneError(
            f"image_sizes: what Ollama makes of the images of {folder.architecture} is not known; unset it."
        )
    recipe = recipe.model_copy(update={"image_min_pixels": None, "image_max_pixels": None})
    return recipe, folder.with_image_pixel_limits(*limits)
