"""Short questions about pictures made here, whose cost in tokens and log-probabilities show what the model sees."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

from modelfiles.server.client import OllamaClient

QUESTION = "What is in this picture?"
PROBE_SIDE = 256  # pixels


@dataclass(frozen=True)
class Reply:
    """prompt_tokens: of the whole request; logprobs: of the likeliest first tokens, in falling order.

    problem: what is missing from the reply, "" if it can be judged.
    """

    prompt_tokens: int
    logprobs: list[float]
    problem: str = ""


def ask_about(server: OllamaClient, model: str, images: list[str], placeholders: str = "") -> Reply:
    """The first token of an answer. `placeholders`: text before the question, such as "[img] [img] ".

    Raises OllamaError.
    """
    message = {"role": "user", "content": placeholders + QUESTION, **({"images": images} if images else {})}
    options = {"temperature": 0, "num_predict": 1, "seed": 0}
    answer = server.chat(model, [message], options=options, logprobs=True, top_logprobs=5)
    count = answer.get("prompt_eval_count")
    tokens = answer.get("logprobs") or []
    first = tokens[0] if isinstance(tokens, list) and tokens and isinstance(tokens[0], dict) else {}
    # Several tokens may print alike ("" for special ones, or parts of a character), so their texts are no keys.
    entries = first.get("top_logprobs") or ([first] if first else [])
    logprobs = sorted((float(entry["logprob"]) for entry in entries if "logprob" in entry), reverse=True)
    if type(count) is not int or count <= 0:
        return Reply(0, logprobs, "the reply is empty: it says no prompt_eval_count")
    return Reply(count, logprobs, "" if logprobs else "the reply is empty: it has no log-probabilities")


def encoded_image(kind: int, side: int = PROBE_SIDE) -> str:
    """A PNG in base64: 0 is red, 1 is blue stripes on white."""
    red, blue, white = b"\xff\x00\x00", b"\x00\x00\xff", b"\xff\xff\xff"
    rows = (red * side if kind == 0 else (blue if row // 16 % 2 else white) * side for row in range(side))
    data = zlib.compress(b"".join(b"\x00" + row for row in rows))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return base64.b64encode(png).decode()
