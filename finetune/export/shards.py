"""Copies a model's weight files, as they are or cut anew, tensor bytes unchanged."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from modelfiles.folder.model_folder import ModelFolder
from modelfiles.folder.safetensors_header import TensorInfo
from modelfiles.folder.safetensors_writer import TensorSource, write_safetensors

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorLocation:
    """Where a copied tensor's bytes begin."""

    file: Path
    offset: int


def copy_weights(folder: ModelFolder, target: Path, max_shard_bytes: float | None) -> dict[str, TensorLocation]:
    """Copies the weights into `target`; returns where each tensor's bytes are there.

    max_shard_bytes: the size of a shard's file. The base's own shards are kept if none is larger; otherwise new
    ones are filled in the base's order. A single tensor may exceed the limit.
    """
    if max_shard_bytes is None or all(shard.stat().st_size <= max_shard_bytes for shard in folder.shards):
        for shard in folder.shards:
            shutil.copyfile(shard, target / shard.name)
        if (folder.path / INDEX).exists():
            shutil.copyfile(folder.path / INDEX, target / INDEX)
        return {
            name: TensorLocation(target / info.shard.name, info.offsets[0]) for name, info in folder.tensors.items()
        }
    shards = _lay_out(folder.tensors, max_shard_bytes)
    locations: dict[str, TensorLocation] = {}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = target / f"model-{number:05}-of-{len(shards):05}.safetensors"
        if len(shards) == 1:
            file = target / "model.safetensors"
        infos = {name: folder.tensors[name] for name in names}
        begins = write_safetensors(file, {n: TensorSource(info.dtype, info.shape, info) for n, info in infos.items()})
        locations |= {name: TensorLocation(file, begin) for name, begin in begins.items()}
        weight_map |= dict.fromkeys(names, file.name)
    if len(shards) > 1:
        total = sum(info.size for info in folder.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return locations


def _lay_out(tensors: dict[str, TensorInfo], max_shard_bytes: float) -> list[list[str]]:
    """Names by shard, in the base's order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, info in tensors.items():
        if shards[-1] and filled + info.size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += info.size
    return shards
