"""The GGUF routes: run llama.cpp's own converter, and try the result in llama.cpp before Ollama gets it.

The converter is a script of a llama.cpp checkout (https://github.com/ggml-org/llama.cpp): one run writes the language
model, a second one with --mmproj the vision tower. Trying needs the package xllamacpp, which is llama.cpp's server as a
library; it runs in a child process, because a broken GGUF ends the process it is loaded into.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from modelfiles.folder.files import read_json, regular_file
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.folder.safetensors_header import HeaderError, read_header
from modelfiles.hardware.python_child import module_command
from modelfiles.ollama.plan import ModelfilePlanError

TRY_SECONDS = 600
_VISION = ("visual.", "vision_tower.", "vision_model.")


def conversions(route: str, source: Path, base: Path) -> list[tuple[str, list[str]]]:
    """(file to write, converter script and arguments) of a route; `source` is the model, or the adapter of `base`."""
    if route == "adapter-gguf":
        return [("adapter.gguf", ["convert_lora_to_gguf.py", "--base", str(base), str(source)])]
    return [
        ("model.gguf", ["convert_hf_to_gguf.py", str(source), "--outtype", "bf16"]),
        ("mmproj.gguf", ["convert_hf_to_gguf.py", str(source), "--mmproj", "--outtype", "f16"]),
    ]


def script(route: str, source: Path, base: Path) -> str:
    """A shell script for those who run the converter themselves, inside the stage folder."""
    lines = [
        "#!/bin/sh",
        "# Writes the GGUF files; LLAMA_CPP is a llama.cpp checkout.",
        "set -eu",
        'cd "$(dirname "$0")"',
    ]
    for name, (program, *arguments) in conversions(route, source, base):
        lines.append(f'python3 "$LLAMA_CPP/{program}" {shlex.join(arguments)} --outfile {name}')
    return "\n".join(lines) + "\n"


def convert(route: str, source: Path, base: Path, llama_cpp: Path, out: Path, python: str = "") -> dict[str, Path]:
    """Runs the converter with `python` (this one unless given); the files by name, in `out`.

    Raises ModelfilePlanError with the converter's last line, or with the package that it lacks.
    """
    python = python or sys.executable
    written: dict[str, Path] = {}
    for name, (program, *arguments) in conversions(route, source, base):
        path = llama_cpp / program
        if not path.is_file():
            raise ModelfilePlanError(f"{llama_cpp} has no {program}; give a llama.cpp checkout.")
        command = [python, str(path), *arguments, "--outfile", str(out / name)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise ModelfilePlanError(f"--python {python} cannot be run: {error.strerror}.") from None
        if done.returncode != 0 or not (out / name).is_file():
            last = _last_line(done.stderr)
            lacks = re.search(r"No module named '([\w.]+)'", last)
            if lacks:
                raise ModelfilePlanError(
                    f"llama.cpp's {program} needs the package {lacks[1]!r}, which {python} lacks: install what the "
                    "checkout's requirements.txt lists, or name another Python with --python."
                )
            raise ModelfilePlanError(f"llama.cpp's {program} could not write {name}: {last[:300]}")
        written[name] = out / name
    return written


def find_quantizer(llama_cpp: Path) -> Path | None:
    """llama.cpp's llama-quantize: of the checkout's build, or on the PATH."""
    for candidate in (llama_cpp / "build" / "bin" / "llama-quantize", llama_cpp / "llama-quantize"):
        if candidate.is_file():
            return candidate.resolve()
    found = shutil.which("llama-quantize")
    return Path(found) if found else None


def quantize(tool: Path, model: Path, kind: str) -> None:
    """Replaces a GGUF by its quantized copy, as `ollama create -q` would make it. Raises ModelfilePlanError."""
    target = model.with_suffix(".quantized")
    done = subprocess.run(
        [tool, model, target, kind], capture_output=True, text=True, errors="replace", check=False
    )  # fmt: skip
    if done.returncode != 0 or not target.is_file():
        raise ModelfilePlanError(f"{tool} could not quantize to {kind}: {_last_line(done.stderr)[:300]}")
    target.replace(model)


def _last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def open_adapter(path: Path) -> ModelFolder:
    """The base model of a PEFT adapter that the adapter-gguf route can take.

    Raises ModelfilePlanError and ModelFolderError.
    """
    folder = path.expanduser().resolve()
    if not (folder / "adapter_config.json").exists():
        raise ModelfilePlanError(
            f"{path} is no PEFT adapter (no adapter_config.json); --route adapter-gguf takes the adapter."
        )
    named = read_json(folder, "adapter_config.json").get("base_model_name_or_path")
    try:
        names = read_header(regular_file(folder, "adapter_model.safetensors"))
    except HeaderError as error:
        raise ModelFolderError(f"{error}.", "MF106") from None
    vision = next((name for name in names if any(part in name for part in _VISION)), None)
    if vision:
        raise ModelfilePlanError(
            f"the adapter changes the vision tower ({vision!r}), which a GGUF adapter cannot; merge it."
        )
    candidates = [Path(named), folder / named] if isinstance(named, str) else []
    base = next((candidate for candidate in candidates if (candidate / "config.json").exists()), None)
    if base is None:
        raise ModelfilePlanError(
            f"the adapter's base model {named!r} is not a local folder; download it and correct {path}."
        )
    return ModelFolder.open(base)


def can_try() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


def try_pair(model: Path, mmproj: Path) -> tuple[bool, str]:
    """Loads a GGUF pair in llama.cpp and asks about two images: (whether they change the answer, what was seen)."""
    try:
        done = subprocess.run(
            [*module_command("modelfiles.staging.gguf"), str(model), str(mmproj)],
            capture_output=True, text=True, errors="replace", timeout=TRY_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"llama.cpp did not answer within {TRY_SECONDS} seconds"
    if done.returncode != 0:
        why = _last_line(done.stderr)[:300]
        return False, f"llama.cpp could not run the pair (exit status {done.returncode}: {why})"
    red, striped = json.loads(_last_line(done.stdout))
    if not red or not striped:
        return False, "llama.cpp gave no log-probabilities for any token of the answers"
    return red != striped, f"log-probabilities of the first token: {red[0]:.4f} and {striped[0]:.4f}"


def _child(model: str, mmproj: str) -> None:
    """Prints the log-probabilities of an answer's tokens after each of two different images.

    A token that ends inside a character has none until the character is whole, so one token is not enough.
    """
    from modelfiles.server.probe import encoded_image

    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = model, mmproj
    params.n_ctx, params.n_parallel, params.warmup = 8192, 1, False
    server = xllamacpp.Server(params)
    answers = []
    for kind in (0, 1):
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded_image(kind)}"}}
        content = [image, {"type": "text", "text": "What is in this picture?"}]
        request = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 8,
            "temperature": 0,
            "logprobs": True,
        }
        answer = server.handle_chat_completions(request)
        tokens = (answer["choices"][0].get("logprobs") or {}).get("content") or []
        answers.append([token["logprob"] for token in tokens])
    print(json.dumps(answers))


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2])
