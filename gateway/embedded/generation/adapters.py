"""LoRA adapters beside the base, in one copy of its weights: a batch runs with one of them, or with none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from modelfiles.adapter.names import names_of_all_versions
from modelfiles.adapter.reader import PREFIX, WEIGHTS, AdapterError, read_plain_adapter
from modelfiles.folder.model_folder import ModelFolder

DIGEST_DIGITS = 12  # of an adapter's sha256, in what the engine reports as having answered


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a linear's output: scale * b @ a @ x. a: [rank, in], b: [out, rank]."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


class Adapters:
    """The adapters of a loaded model. Nothing of the base's weights is changed; `running` adds to linears' outputs.

    digests: of each adapter's file, by its name. Raises AdapterError unless all of every adapter finds its place.
    """

    def __init__(self, model: Any, folder: ModelFolder, paths: Mapping[str, Path]) -> None:
        self.digests: dict[str, str] = {}
        self._running: str | None = None
        modules = dict(model.named_modules())
        places: dict[str, dict[str, LowRank]] = {}  # by the module's name, then the adapter's
        for name, path in paths.items():
            adapter = read_plain_adapter(path, folder)
            file = path / WEIGHTS
            tensors = load_file(file, device="cpu")
            self.digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()[:DIGEST_DIGITS]
            changes = False
            for module, pair in adapter.lora.items():
                found = [one for one in names_of_all_versions(module) if isinstance(modules.get(one), torch.nn.Linear)]
                if len(found) != 1:
                    raise AdapterError(
                        f"The adapter {path} changes {module}, no linear of {folder.name}; is that its base?"
                    )
                linear = modules[found[0]]
                a, b = (
                    tensors[f"{PREFIX}{module}.{kind}.weight"].to(linear.weight.device, linear.weight.dtype)
                    for kind in ("lora_A", "lora_B")
                )
                if (b.shape[0], a.shape[1]) != (linear.out_features, linear.in_features):
                    raise AdapterError(f"The adapter {path} does not fit {module} of {folder.name}; is that its base?")
                changes = changes or bool(a.any() and b.any())
                places.setdefault(found[0], {})[name] = LowRank(a, b, pair.scale)
            if not changes:
                raise AdapterError(f"The adapter {path} changes nothing: its matrices are zero. Was it trained?")
        for module, by_adapter in places.items():
            modules[module].register_forward_hook(self._adding(by_adapter))

    @contextmanager
    def running(self, name: str | None) -> Iterator[None]:
        """The model with the adapter of this name, or as it is. For one thread at a time."""
        self._running = name
        try:
            yield
        finally:
            self._running = None

    def _adding(self, by_adapter: Mapping[str, LowRank]) -> Any:
        def add(linear: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            added = None if self._running is None else by_adapter.get(self._running)
            if added is None:
                return output
            functional = torch.nn.functional
            return output + added.scale * functional.linear(functional.linear(inputs[0], added.a), added.b)

        return add
