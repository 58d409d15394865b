"""The one reader of a model folder: a Hugging Face directory of safetensors, configs, tokenizer and chat template.

Nothing here loads weights or runs code from the folder. Everything read is checked first: a model folder is input from
outside, whoever made it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from modelfiles.folder.files import (
    MAX_TEMPLATE_BYTES,
    ModelFolderError,
    positive_int,
    read_json,
    read_text,
    regular_file,
)
from modelfiles.folder.image_processor import image_processor_files, pixel_limits
from modelfiles.folder.provenance import PROVENANCE, without_verification
from modelfiles.folder.safetensors_header import HeaderError, TensorInfo, header_length, read_header

__all__ = ["ModelFolder", "ModelFolderError", "TensorInfo"]

MAX_SHARDS = 4096


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose config and weight files exist and can be read. Make one with `ModelFolder.open`.

    path: the folder, absolute; config: config.json; shards: the weight files by name (inside `path`, perhaps links).
    Attributes read on first use may raise ModelFolderError too.
    """

    path: Path
    config: dict[str, Any]
    shards: list[Path]

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Reads config.json and checks that the weights are there. Raises ModelFolderError."""
        try:
            folder = Path(path).expanduser().resolve()
            exists, is_dir = folder.exists(), folder.is_dir()
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelFolderError(f"{str(path)!r} cannot be opened: {error}.") from None
        if not exists:
            raise ModelFolderError(f"{path} does not exist; give the folder of a merged model.")
        if not is_dir:
            raise ModelFolderError(f"{path} is a file; give the folder that holds config.json and the weights.")
        if not (folder / "config.json").exists():
            if (folder / "adapter_config.json").exists():
                raise ModelFolderError(
                    f"{path} is a PEFT adapter, not a model; merge it into its base first (`lensmith export`).", "MF102"
                )
            raise ModelFolderError(f"{path} has no config.json; give the folder of a Hugging Face model.")
        return cls(folder, read_json(folder, "config.json"), _shards(folder))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def architecture(self) -> str:
        """config.json's first entry of `architectures`, or "" (Ollama calls that an unknown architecture)."""
        names = self.config.get("architectures")
        first = names[0] if isinstance(names, list) and names else ""
        return first if isinstance(first, str) and first.isidentifier() else ""

    @property
    def model_type(self) -> str:
        value = self.config.get("model_type")
        return value if isinstance(value, str) and value.isprintable() else ""

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's settings: `text_config` where the family nests them, else config.json itself."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def vision_config(self) -> dict[str, Any]:
        nested = self.config.get("vision_config")
        return nested if isinstance(nested, dict) else {}

    @property
    def max_position_embeddings(self) -> int:
        """The context length in tokens; 0 if config.json does not say."""
        return positive_int(self.text_config.get("max_position_embeddings"))

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor of every shard by name. Raises ModelFolderError for a header that cannot be trusted."""
        tensors: dict[str, TensorInfo] = {}
        for shard in self.shards:
            try:
                added = read_header(regular_file(self.path, shard.name), shard)
            except HeaderError as error:
                raise ModelFolderError(f"{error}.", "MF105" if error.lfs_pointer else "MF106") from None
            twice = tensors.keys() & added.keys()
            if twice:
                raise ModelFolderError(f"tensor {min(twice)!r} is in two shards, {shard.name} and another.", "MF106")
            tensors.update(added)
        return tensors

    @cached_property
    def chat_template_and_source(self) -> tuple[str | None, str]:
        """The Jinja chat template and the file it is from; (None, "") if the folder has none.

        chat_template.jinja comes first, then tokenizer_config.json, then chat_template.json: transformers' order.
        """
        if (self.path / "chat_template.jinja").exists():
            return read_text(self.path, "chat_template.jinja"), "chat_template.jinja"
        for file in ("tokenizer_config.json", "chat_template.json"):
            template = self._optional_json(file).get("chat_template")
            if isinstance(template, list):  # several named templates; transformers uses the one called "default"
                named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
                template = named.get("default")
            if isinstance(template, str):
                if len(template) > MAX_TEMPLATE_BYTES:
                    raise ModelFolderError(f"{file} has a chat template of over {MAX_TEMPLATE_BYTES:,} characters.")
                return template, file
        return None, ""

    @property
    def chat_template(self) -> str | None:
        return self.chat_template_and_source[0]

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or {}."""
        return self._optional_json("generation_config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json, or {}."""
        return self._optional_json("tokenizer_config.json")

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of the special tokens that chat templates use, by name; "" for one that is not set."""
        tokens = {}
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = self.tokenizer_config.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            tokens[name] = value if isinstance(value, str) else ""
        return tokens

    @cached_property
    def added_tokens(self) -> dict[int, tuple[str, bool]]:
        """tokenizer.json's added tokens: id -> (text, whether special)."""
        entries = self._optional_json("tokenizer.json").get("added_tokens")
        return {
            entry["id"]: (entry["content"], entry.get("special") is True)
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("content"), str)
        }

    @property
    def byte_level(self) -> bool:
        """Whether the vocabulary is byte-level BPE's, as tokenizer.json's decoder says; SentencePiece's otherwise."""
        return "ByteLevel" in json.dumps(self._optional_json("tokenizer.json").get("decoder"))

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end an answer: generation_config.json's, else config.json's."""
        for holder in (self.generation_config, self.config, self.text_config):
            value = holder.get("eos_token_id")
            ids = [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
            if ids:
                return ids
        return []

    @cached_property
    def preprocessor(self) -> dict[str, Any]:
        """The image processor's settings, whichever file holds them; {} if none does."""
        return next(iter(image_processor_files(self.path).values()), {})

    @property
    def patch_size(self) -> int:
        """Side of a vision patch in pixels; 0 if the folder does not say."""
        return positive_int(self.preprocessor.get("patch_size")) or positive_int(self.vision_config.get("patch_size"))

    @property
    def merge_size(self) -> int:
        """Patches a side that become one image token; 1 if the folder does not say."""
        merge = positive_int(self.preprocessor.get("merge_size"))
        return merge or positive_int(self.vision_config.get("spatial_merge_size")) or 1

    @property
    def image_pixel_limits(self) -> tuple[int, int]:
        """The fewest and most pixels (width x height) the processor resizes an image to; 0 where it does not say."""
        return pixel_limits(self.preprocessor)

    def with_image_pixel_limits(self, min_pixels: int, max_pixels: int) -> ModelFolder:
        """The same folder with other `image_pixel_limits`, as if its processor named them."""
        copy = replace(self)
        copy.__dict__["preprocessor"] = self.preprocessor | {"min_pixels": min_pixels, "max_pixels": max_pixels}
        return copy

    def fingerprint(self) -> str:
        """A sha256 that tells models apart without reading them whole.

        It covers config.json, lensmith.json without the results of `lensmith verify`, and of each shard its name, size,
        header and 16 samples of 4 KiB: headers alone are equal for every fine-tune of one base.
        """
        digest = hashlib.sha256()
        for name in ("config.json", PROVENANCE):
            if (self.path / name).exists():
                raw = regular_file(self.path, name).read_bytes()
                digest.update(without_verification(raw) if name == PROVENANCE else raw)
            digest.update(b"\0")
        for shard in self.shards:
            file_path = regular_file(self.path, shard.name)
            size, start = file_path.stat().st_size, 8 + self._header_length(shard.name)
            digest.update(f"{shard.name}\0{size}\0".encode())
            with file_path.open("rb") as file:
                digest.update(file.read(start))
                for block in range(16):
                    file.seek(start + (size - start) * block // 16)
                    digest.update(file.read(4096))
        return digest.hexdigest()

    def _header_length(self, shard: str) -> int:
        try:
            return header_length(regular_file(self.path, shard))
        except HeaderError as error:
            raise ModelFolderError(f"{error}.", "MF105" if error.lfs_pointer else "MF106") from None

    def _optional_json(self, name: str) -> dict[str, Any]:
        return read_json(self.path, name) if (self.path / name).exists() else {}


def _shards(folder: Path) -> list[Path]:
    """The weight files: those the index names, else every *.safetensors. Raises ModelFolderError."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(folder, index.name).get("weight_map")
        files = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not files or not all(isinstance(name, str) for name in files):
            raise ModelFolderError(f"{index.name} in {folder} has no weight_map of file names.", "MF104")
        names = set(files)
        for name in sorted(names):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelFolderError(f"{index.name} in {folder} names {name!r}, which is no weight file.", "MF103")
            if not (folder / name).exists():
                raise ModelFolderError(f"{folder} lacks the shard {name} that {index.name} names.", "MF107")
    else:
        names = {entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors")}
        names.discard("adapter_model.safetensors")
    if not names and (folder / "adapter_config.json").exists():
        raise ModelFolderError(f"{folder} is a PEFT adapter, not a model; merge it into its base first.", "MF102")
    if not names:
        found = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".gguf"})[:1]
        hint = f"; {found[0]} is not safetensors" if found else ""
        raise ModelFolderError(f"{folder} has no weights (*.safetensors){hint}.", "MF101")
    if len(names) > MAX_SHARDS:
        raise ModelFolderError(f"{folder} has more than {MAX_SHARDS} weight files.", "MF104")
    for name in sorted(names):
        try:
            header_length(regular_file(folder, name))
        except HeaderError as error:
            raise ModelFolderError(f"{error}.", "MF105" if error.lfs_pointer else "MF106") from None
    return [folder / name for name in sorted(names)]
