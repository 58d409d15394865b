"""What a model sees of a row, by its own processor: asked of a process that is kept warm, as loading it takes seconds.

python -m studio.datasets.model_view reads a JSON line for each question and writes one for each answer.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from modelfiles.hardware.python_child import module_command
from studio.errors import StudioError

TIMEOUT = 120.0  # seconds for an answer, the loading of a processor included
IDLE = 300.0  # seconds without a question after which the process goes
MAX_ANSWER = 32 * 2**20  # bytes
MAX_TOKENS = 4096  # that are shown one by one


class ModelViewer:
    """Asks the process, which it starts when there is none. Questions wait for each other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer of `view`. Raises StudioError with the sentence of what is wrong."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    module_command("studio.datasets.model_view"),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    cwd=question["folder"],
                )
            try:
                answer = self._exchange(self._process, json.dumps(question).encode() + b"\n")
            except (OSError, ValueError):
                self._end()
                raise StudioError("data.error_model_view", status=502) from None
            self._timer = threading.Timer(IDLE, self.close)
            self._timer.daemon = True
            self._timer.start()
        if "error" in answer:
            raise StudioError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """End the process if there is one."""
        with self._lock:
            self._end()

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any]:
        """Raises OSError if the process ends or takes too long, and ValueError if it writes what is no answer."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line)
        process.stdin.flush()
        data = b""
        while not data.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
            chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
            if not chunk or len(data) > MAX_ANSWER:
                raise OSError("no answer")
            data += chunk
        answer: dict[str, Any] = json.loads(data)
        return answer

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            self._process = None


def view(question: dict[str, Any], readers: dict[str, Any]) -> dict[str, Any]:
    """{"tokens", "learnt": how many; "pieces": [{"kind": "text", "learnt", "image" or "video", "tokens": the texts}],
    "pictures": [{"width", "height", "tokens", "data": a data URI}]}.

    question: {"model", "record", "place", "folder", "box_format"}. readers: those that are loaded, by model. Raises
    FinetuneError.
    """
    from finetune.encoding.boxes import place_boxes
    from finetune.families.registry import family_of
    from finetune.media.bank import ImageBank
    from finetune.media.image_files import decode
    from finetune.model.folder import open_base
    from finetune.preflight.starter import PIXELS
    from finetune.recipe.load import make_recipe
    from studio.datasets.records import read_record

    recipe = make_recipe(
        {"model_name_or_path": question["model"], "box_format": question["box_format"], "image_max_pixels": PIXELS}
    )
    if question["model"] not in readers:
        readers.clear()
        folder = open_base(recipe)
        readers[question["model"]] = family_of(folder).read(folder, recipe)
    reader = readers[question["model"]]
    row = read_record(question["record"], Path(question["folder"]), question["place"])
    reader.encoder.refuse_specials(row)
    (row,) = place_boxes([row], reader.encoder, reader.folder.model_type, recipe)
    (encoded,) = reader.encoder.encode([row])
    pieces = _pieces(encoded, reader)
    pictures = []
    if isinstance(reader.bank, ImageBank) and not row.videos:
        patch = reader.bank.limits.patch
        for index, image in zip(encoded.images, row.images, strict=True):
            _, rows, columns = reader.bank.grids[index]
            resized = decode(image).resize((columns * patch, rows * patch))
            buffer = io.BytesIO()
            resized.save(buffer, "WEBP", quality=85)
            data = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
            size = {"width": resized.width, "height": resized.height, "tokens": reader.bank.tokens(index)}
            original = dict(zip(("original_width", "original_height"), reader.bank.sizes[index], strict=True))
            pictures.append(size | original | {"data": data, "patch": patch * reader.bank.limits.merge})
    return {"tokens": len(encoded), "learnt": int(encoded.labelled.sum()), "pieces": pieces, "pictures": pictures}


def _pieces(encoded: Any, reader: Any) -> list[dict[str, Any]]:
    """Runs of tokens of one kind; those that hold a part of a character are shown with the next."""
    tokenizer, encoder = reader.processor.tokenizer, reader.encoder
    pieces: list[dict[str, Any]] = []
    held: list[int] = []
    for token, learnt in zip(encoded.ids.tolist()[:MAX_TOKENS], encoded.labelled.tolist(), strict=False):
        media = {encoder.image_token_id: "image", encoder.video_token_id: "video"}.get(token)
        kind = media or ("learnt" if learnt else "text")
        if not pieces or pieces[-1]["kind"] != kind:
            pieces.append({"kind": kind, "count": 0, "tokens": []})
            held = []
        pieces[-1]["count"] += 1
        if media is None:
            text = tokenizer.decode([*held, token])
            held = [*held, token] if text.endswith("\N{REPLACEMENT CHARACTER}") and len(held) < 4 else []
            if not held:
                pieces[-1]["tokens"].append(text)
    return pieces


def main() -> None:
    """Answer questions until nobody can ask any more."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries that print do not disturb the answers
    readers: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            from finetune.errors import FinetuneError

            answer = view(json.loads(line), readers)
        except FinetuneError as error:
            answer = {"error": error.message}
        except Exception as error:  # whatever a processor raises; the next question is answered all the same
            answer = {
                "error": f"The model's processor cannot read this row ({type(error).__name__}: {str(error)[:300]})."
            }
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
