"""Models and datasets by their id on the Hugging Face hub, or on ModelScope with USE_MODELSCOPE_HUB=1.

The hubs' own clients download, cache and verify; HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_TOKEN are theirs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from finetune.errors import FinetuneError

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What a model folder needs: no weights in formats that run code when read, and none twice.
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "LICENSE*", "README.md"]
MODEL_FOLDERS = ["original/*", "onnx/*"]
Kind = Literal["model", "dataset"]


def is_hub_id(name: str) -> bool:
    """Whether a name that is no local path can be an id: `owner/name`."""
    return ID.fullmatch(name) is not None


def modelscope_wanted() -> bool:
    return os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "yes")


def local_model(name: str) -> str:
    """A model's folder: the path itself if it exists, else where its download is. Raises FinetuneError."""
    return name if os.path.isdir(name) or not is_hub_id(name) else str(download(name, "model"))


def download(name: str, kind: Kind) -> Path:
    """The folder that holds a hub's model or dataset, downloaded if it is not there yet. Raises FinetuneError."""
    return _from_modelscope(name, kind) if modelscope_wanted() else _from_hugging_face(name, kind)


def _from_hugging_face(name: str, kind: Kind) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    files: dict[str, Any] = {"allow_patterns": MODEL_FILES, "ignore_patterns": MODEL_FOLDERS} if kind == "model" else {}
    try:
        return Path(snapshot_download(name, repo_type=kind, **files))
    except GatedRepoError:
        reason = "it is gated: accept its terms on the hub and set HF_TOKEN"
    except RepositoryNotFoundError:
        reason = f"{constants.ENDPOINT} has no such {kind}, or it is private: check the id, or set HF_TOKEN"
    except LocalEntryNotFoundError:
        cause = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        reason = f"it is not in the cache and {cause}; download it first, or give a folder"
    except (HfHubHTTPError, OSError) as error:
        reason = f"the download failed: {str(error).splitlines()[0][:200]}"
    raise FinetuneError(f"{name} is no local folder, and as a {kind} of the Hugging Face hub {reason}.")


def _from_modelscope(name: str, kind: Kind) -> Path:
    try:
        from modelscope import dataset_snapshot_download, snapshot_download
    except ImportError:
        raise FinetuneError("USE_MODELSCOPE_HUB is set but modelscope is missing: pip install modelscope") from None
    try:
        if kind == "dataset":
            return Path(dataset_snapshot_download(name))
        return Path(snapshot_download(name, allow_patterns=MODEL_FILES, ignore_patterns=MODEL_FOLDERS))
    except Exception as error:  # its client raises bare Exceptions too
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FinetuneError(f"{name} is no local folder, and cannot be had from ModelScope: {reason}.") from None
