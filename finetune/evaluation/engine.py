"""Greedy answers of an inference engine that is started for them, behind Lensmith's gateway, and ended after them."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from finetune.data.datasets import Dataset
from finetune.data.formats import Row
from finetune.errors import FinetuneError
from finetune.evaluation.endpoint import Endpoint, refuse_unsent
from finetune.model.changes import plan_changes, read_trained
from finetune.model.folder import open_base
from finetune.model.trained_by import weights_digest, with_training_limits
from finetune.recipe.schema import Recipe
from modelfiles.hardware.python_child import free_port, module_command
from modelfiles.hardware.server_child import ServerChildError, server_child

# What `lensmith serve --engine` starts -> how to install it.
ENGINES = {"lmdeploy": "lensmith[lmdeploy]", "transformers": "lensmith[cpu]", "vllm": "vllm"}
AT_ONCE = 64  # questions, unless the recipe says how many: what an engine does not batch yet has its images decoded
MAX_BYTES = 1 << 32  # of requests, which are our own
MAX_PIXELS = 1 << 40

Merge = Callable[[Recipe, Console], Path]


class EngineModel:
    """The recipe's base, or base and adapter merged, served by an engine when answers are wanted.

    merge: writes the merged model to the recipe's export_dir. Raises FinetuneError for what the engine cannot honour.
    """

    def __init__(self, engine: str, recipe: Recipe, data: Dataset, console: Console, merge: Merge) -> None:
        self.engine, self.recipe, self.data, self.console, self.merge = engine, recipe, data, console, merge
        self.rows: Sequence[Row] = data.rows
        if importlib.util.find_spec(engine) is None:
            raise FinetuneError(f"--engine {engine}: {engine} is not installed; pip install '{ENGINES[engine]}'.")
        refuse_unsent(recipe, data, "--engine")
        if recipe.quantization_bit:
            raise FinetuneError(
                "quantization_bit: an engine serves the base in 16 bits, as after `lensmith export`; add "
                "quantization_bit=null to score that, or evaluate without --engine."
            )
        self.folder = open_base(recipe)
        adapter = recipe.adapter_name_or_path
        if adapter:
            plan_changes(self.folder, read_trained(Path(adapter), self.folder))
        elif recipe.image_min_pixels or recipe.image_max_pixels:
            key = "image_max_pixels" if recipe.image_max_pixels else "image_min_pixels"
            raise FinetuneError(f"{key}: an engine sizes images by the model's own limits; add {key}=null.")
        limits = with_training_limits(recipe)
        asked = (
            f"{engine} {self.folder.fingerprint()} {data.digest} {recipe.max_new_tokens} {limits.image_min_pixels} "
            f"{limits.image_max_pixels} {weights_digest(Path(adapter)) if adapter else ''}"
        )
        self.identity = hashlib.sha256(asked.encode()).hexdigest()

    def answer(self, open_rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Starts the engine, asks it, and ends it. Raises FinetuneError if it does not start, or ends by itself."""
        if not open_rows:
            return
        set_by_user = "per_device_eval_batch_size" in self.recipe.model_fields_set
        at_once = self.recipe.per_device_eval_batch_size if set_by_user else AT_ONCE
        with self._whole_model() as model, self._served(model, at_once) as (url, check):
            endpoint = Endpoint(url, self.recipe, self.data, self.console, at_once, check)
            yield from endpoint.answer(open_rows)

    @contextmanager
    def _whole_model(self) -> Iterator[Path]:
        """The base's folder; with an adapter, one that it is merged into, which is removed afterwards.

        Merged rather than served beside the base: that is what `export` gives, whatever was trained, with training's
        image sizes.
        """
        if not self.recipe.adapter_name_or_path:
            yield self.folder.path
            return
        output = Path(str(self.recipe.output_dir))
        with tempfile.TemporaryDirectory(prefix=".merged-", dir=output) as parent:
            target = {"export_dir": str(Path(parent) / self.folder.path.name), "eval_dataset": None}
            yield self.merge(self.recipe.model_copy(update=target), self.console)

    @contextmanager
    def _served(self, model: Path, at_once: int) -> Iterator[tuple[str, Callable[[], None]]]:
        """The URL of the gateway once its engine is ready, and what raises FinetuneError if it has ended."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        options = {
            "engine": self.engine,
            "port": port,
            "max-images": max(1, *(len(row.images) for row in self.rows)) if self.rows else 1,
            "max-image-pixels": MAX_PIXELS,
            "max-request-pixels": MAX_PIXELS,
            "max-body-bytes": MAX_BYTES,
            "max-bytes-in-flight": MAX_BYTES,
            "max-waiting": max(256, at_once),
        }
        command = [*module_command("lensmith"), "serve", str(model)]
        command += [f"--{name}={value}" for name, value in options.items()]
        self.console.print(f"Starting {self.engine}.", highlight=False)
        try:
            # Ctrl-C ends the evaluation, which ends the engine.
            with server_child(command, f"{url}/ready", self.engine, own_session=True) as child:

                def check() -> None:
                    try:
                        child.check()
                    except ServerChildError as error:
                        raise FinetuneError(f"{error} The same command goes on after the answers so far.") from None

                yield url, check
        except ServerChildError as error:
            raise FinetuneError(str(error)) from None
