"""What a merged folder's lensmith.json says of where it came from."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from finetune.model.trained_by import ADAPTER, TRAINED_WEIGHTS
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.version import lensmith_version


def make_provenance(
    folder: ModelFolder, adapter: Path, changed: int, delta_norm: float, weight_norm: float
) -> dict[str, Any]:
    """lensmith.json: where the merged folder came from and what was checked."""

    def sha256(path: Path) -> str | None:
        if not path.is_file():
            return None
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
        return digest.hexdigest()

    def optional(name: str) -> dict[str, Any] | None:
        path = adapter / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    weights = adapter / (TRAINED_WEIGHTS if (adapter / TRAINED_WEIGHTS).is_file() else ADAPTER)
    environment, trained = optional("environment.json"), optional("train_results.json")
    return {
        "lensmith": lensmith_version(),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base": {"name": folder.name, "fingerprint": folder.fingerprint()},
        "adapter": {"sha256": sha256(weights), "weights": changed},
        "recipe_sha256": sha256(adapter / "recipe.yaml"),
        "data_sha256": environment["data_sha256"] if environment else None,
        "training": {key: trained[key] for key in ("steps", "samples", "loss")} if trained else None,
        "delta_norm": delta_norm,
        "relative_delta_norm": delta_norm / weight_norm,
        "checks": ["every trained tensor used", "all merged weights finite", "names, dtypes and shards as in the base"],
    }
