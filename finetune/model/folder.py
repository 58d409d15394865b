"""Opens the folder of a base model and checks that it can be trained."""

from __future__ import annotations

from finetune.data.hub import local_model
from finetune.errors import FinetuneError
from finetune.model.supported import refuse_unsupported
from finetune.model.whole_base import refuse_quantised
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError


def open_base(recipe: Recipe) -> ModelFolder:
    """The base model's folder. Raises FinetuneError if it cannot be used."""
    try:
        folder = ModelFolder.open(local_model(recipe.model_name_or_path))
        folder.tensors  # noqa: B018 - reads and checks every shard's header
    except ModelFolderError as error:
        raise FinetuneError(f"model_name_or_path: {error}") from None
    refuse_quantised(folder)
    refuse_unsupported(folder)
    return folder
