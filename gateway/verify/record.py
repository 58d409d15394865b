"""Keeps a verification's result in the model folder."""

from __future__ import annotations

from typing import Any

from modelfiles.folder.atomic_write import write_atomically
from modelfiles.folder.files import read_json, regular_file
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.folder.provenance import PROVENANCE, VERIFIED, to_bytes


def record_results(folder: ModelFolder, results: list[dict[str, Any]]) -> bool:
    """Put results into lensmith.json, in place of earlier ones of the same engines.

    False if the folder has no such file: only an export has, and is known as one by it. Raises ModelFolderError and
    OSError.
    """
    if not (folder.path / PROVENANCE).exists():
        return False
    fields, path = read_json(folder.path, PROVENANCE), regular_file(folder.path, PROVENANCE)
    earlier, engines = fields.get(VERIFIED), [result["engine"] for result in results]
    entries = [one for one in earlier if isinstance(one, dict)] if isinstance(earlier, list) else []
    kept = [one for one in entries if one.get("engine") not in engines]
    write_atomically(path, to_bytes({**fields, VERIFIED: [*kept, *results]}))
    return True
