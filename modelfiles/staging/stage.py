"""Writes a plan as a stage folder: what `ollama create` reads, beside the model's folder, which is never touched."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from modelfiles.checks.doctor import check_folder
from modelfiles.checks.rules import is_repaired, prevents_import
from modelfiles.folder.atomic_write import new_folder
from modelfiles.folder.files import regular_file
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.language.grammar import emit
from modelfiles.ollama.plan import ModelfilePlan, ModelfilePlanError
from modelfiles.ollama.versions import version_text
from modelfiles.staging.gguf import convert, find_quantizer, quantize, script

LOCK = "modelfile.lock.json"
SCRIPT = "convert-to-gguf.sh"
# Small files of the model that Ollama or transformers read; each is copied if the model has it: a stage may be edited,
# and a link would carry the edit into the model.
COMPANIONS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json",
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
    "model.safetensors.index.json", "lensmith.json",
)  # fmt: skip


def write_stage(
    plan: ModelfilePlan, out: Path, llama_cpp: Path | None = None, source: Path | None = None, python: str = ""
) -> Path:
    """Writes `out` in one step: it appears whole or not at all. An earlier stage there is replaced.

    `llama_cpp` runs that checkout's converter, with `python`, for the GGUF routes, and its llama-quantize if that is
    built; `source` is what it converts if that is not the plan's folder (an adapter). Raises ModelfilePlanError, and
    UnrepresentableError for text a Modelfile cannot hold.
    """
    modelfile = emit(plan.commands)
    if plan.route != "adapter-gguf":
        _refuse_broken(plan)
    source = source.expanduser().resolve() if source else plan.folder.path
    kind = plan.options.quantize.upper()
    out = Path(os.path.abspath(out))
    resolved = out.resolve()
    for folder in {plan.folder.path, source}:
        if resolved == folder or folder in resolved.parents or resolved in folder.parents:
            raise ModelfilePlanError(
                f"{out} and the model's folder {folder} lie in one another; choose another output folder."
            )
    if out.exists() and not (out / LOCK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelfilePlanError(
            f"{out} exists and was not made by `lensmith modelfile generate`; choose another output folder."
        )
    try:
        with new_folder(out) as work:
            names = _copy_model(plan, work)
            texts = {name: to_json(content) for name, content in plan.files.items()} | {"Modelfile": modelfile}
            if plan.route != "safetensors" and llama_cpp:
                convert(plan.route, source, plan.folder.path, llama_cpp, work, python)
                tool = find_quantizer(llama_cpp) if kind and plan.route == "gguf" else None
                if tool:
                    quantize(tool, work / "model.gguf", kind)
                    kind = ""  # is done: Ollama does not quantize what is quantized
            elif plan.route != "safetensors":
                texts[SCRIPT] = script(plan.route, source, plan.folder.path)
            for name, text in texts.items():
                (work / name).write_bytes(text.encode())
            lock = _lock(plan, names, sorted(texts), kind)
            (work / LOCK).write_bytes(to_json(lock).encode())
            work.chmod(0o755)
    except OSError as error:
        raise ModelfilePlanError(f"{out} cannot be written: {error.strerror}.") from None
    return out


def stage_option(stage: Path, name: str) -> str:
    """An option that `generate` recorded, or ""."""
    try:
        return str(json.loads((stage / LOCK).read_text(encoding="utf-8"))["options"][name])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _refuse_broken(plan: ModelfilePlan) -> None:
    """Raises ModelfilePlanError if the weights have a fault that no stage folder repairs."""
    findings = check_folder(plan.folder.path, plan.route, plan.options.ollama)
    broken = [found for found in findings if prevents_import(found.rule) and not is_repaired(found.rule)]
    if broken:
        more = f" (and {len(broken) - 1} more; see `lensmith modelfile doctor`)" if len(broken) > 1 else ""
        raise ModelfilePlanError(
            f"{plan.folder.path} would not work in Ollama: {broken[0].rule}: {broken[0].message}{more}"
        )


def to_json(value: object) -> str:
    """JSON that is the same every time, for people to read."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system cannot (another device, no permission, too many links)."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(source, target)


def _copy_model(plan: ModelfilePlan, work: Path) -> list[str]:
    """Links the weights and copies the companions of the safetensors route. Returns the files' names in `work`."""
    if plan.route != "safetensors":
        return []
    folder = plan.folder
    companions = [name for name in COMPANIONS if (folder.path / name).exists() and name not in plan.files]
    for name in companions:
        shutil.copyfile(regular_file(folder.path, name), work / name)
    weights = [shard.name for shard in folder.shards]
    # Ollama looks for model*.safetensors only.
    targets = ["model.safetensors"] if len(weights) == 1 else weights
    for name, target in zip(weights, targets, strict=True):
        link_or_copy(regular_file(folder.path, name), work / target)
    return sorted(companions + targets)


def _lock(plan: ModelfilePlan, unchanged: list[str], written: list[str], kind: str) -> dict[str, Any]:
    """Everything that decided the stage, without times or paths of this machine.

    kind: what Ollama is to quantize to, "" for nothing.
    """
    options = plan.options
    return {
        "generator": "lensmith modelfile generate",
        "model": plan.folder.name,
        "fingerprint": plan.folder.fingerprint(),
        "inputs": _hashes(plan.folder),
        "family": plan.architecture.name,
        "route": plan.route,
        "ollama": version_text(options.ollama),
        "options": {
            "prompt": options.prompt,
            "images_per_request": options.images_per_request,
            "image_size": "x".join(map(str, options.image_size)),
            "quantize": kind,
        },
        "lines": [
            {"name": line.command.name, "args": line.command.args, "reason": line.reason, "source": line.source}
            for line in plan.lines
        ],
        "changes": [{"file": c.file, "key": c.key, "reason": c.reason} for c in plan.changes],
        "prompt_equals_chat_template": plan.prompt_equal,
        "kv_cache_bytes": plan.kv_cache_bytes,
        "warnings": plan.warnings,
        "unchanged": unchanged,
        "written": written,
    }


def _hashes(folder: ModelFolder) -> dict[str, str]:
    """sha256 of every small input; the weights are covered by the fingerprint."""
    return {
        name: hashlib.sha256(regular_file(folder.path, name).read_bytes()).hexdigest()
        for name in COMPANIONS
        if (folder.path / name).exists()
    }
