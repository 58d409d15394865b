"""The merged folder's README.md: what it was made of and how, in place of the base's own card."""

from __future__ import annotations

import re
from typing import Any

import yaml

from finetune.recipe.schema import Recipe
from modelfiles.folder.files import ModelFolderError, read_text
from modelfiles.folder.model_folder import ModelFolder

CARD = "README.md"
FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)
# Of this machine, not of the model.
FOLDERS = {"model_name_or_path", "adapter_name_or_path", "dataset_dir", "media_dir", "output_dir", "export_dir"}
LICENCE_KEYS = ("license", "license_name", "license_link")


def model_card(folder: ModelFolder, provenance: dict[str, Any], trained_by: Recipe | None) -> str:
    """The card of a model merged into the base in `folder`, with the base's licence as its own card states it.

    provenance: what lensmith.json holds; trained_by: the training's recipe, if the adapter is one of ours.
    """
    licence = _licence(folder)
    head = {"base_model": folder.name, "pipeline_tag": "image-text-to-text", "library_name": "transformers"} | licence
    facts = {
        "base": f"{folder.name}, fingerprint {provenance['base']['fingerprint']}",
        "licence of the base": str(licence.get("license", "not stated in its folder; ask its makers")),
        "made": f"{provenance['made']} by lensmith {provenance['lensmith']}",
        "merged weights": f"{provenance['adapter']['weights']}, changed by "
        f"{100 * provenance['relative_delta_norm']:.2f} % of their norm ({provenance['merge_base']} base)",
        "data": f"sha256 {provenance['data_sha256']}" if provenance["data_sha256"] else None,
    }
    if training := provenance["training"]:
        facts["training"] = ", ".join(f"{key} {value}" for key, value in training.items())
    if losses := provenance["validation_loss"]:
        facts["validation loss"] = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    recipe = ""
    if trained_by is not None:
        chosen = yaml.safe_dump(
            trained_by.model_dump(exclude=FOLDERS, exclude_defaults=True), sort_keys=False, allow_unicode=True
        )
        recipe = f"\n## Recipe\n\n```yaml\n{chosen}```\n"
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n# {folder.name}, fine-tuned\n\n{lines}\n{recipe}"


def _licence(folder: ModelFolder) -> dict[str, str]:
    """The licence keys of the base's card; {} if it has none that can be read."""
    if not (folder.path / CARD).exists():
        return {}
    try:
        found = FRONT_MATTER.match(read_text(folder.path, CARD))
        values = yaml.safe_load(found[1]) if found else None
    except (ModelFolderError, yaml.YAMLError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: values[key] for key in LICENCE_KEYS if isinstance(values.get(key), str)}
