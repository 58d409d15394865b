"""What a 404 says: the right path for one that is nearly right, and what is not served at all."""

from __future__ import annotations

from collections.abc import Iterable

# Other APIs, by the first piece of their path after /v1 or /api.
NOT_SERVED = {
    "embeddings": "Embeddings are",
    "audio": "Audio is",
    "images": "Image generation is",
    "files": "Files are",
    "uploads": "Files are",
    "batches": "Batches are",
    "assistants": "Assistants are",
    "threads": "Assistants are",
    "fine_tuning": "Fine-tuning jobs are",
    "moderations": "Moderation is",
    "realtime": "The realtime API is",
    "rerank": "Reranking is",
    # Ollama's.
    "embed": "Embeddings are",
    "pull": "Pulling models is",
    "push": "Pushing models is",
    "create": "Creating models is",
    "copy": "Copying models is",
    "delete": "Deleting models is",
    "blobs": "Creating models is",
    "me": "Signing in is",
    "signout": "Signing in is",
}


def explain_missing(path: str, known: Iterable[str]) -> str:
    """One sentence for a path that is none of `known`. The path itself is not repeated: it is the client's."""
    pieces = [piece for piece in path.split("/") if piece]
    while pieces[:1] in (["v1"], ["api"]) and pieces[1:2] in (["v1"], ["api"]):
        pieces = pieces[1:]  # /v1/v1/models, /v1/api/chat
    rest = pieces[1:] if pieces[:1] in (["v1"], ["api"]) else pieces
    paths = set(known)
    for right in ("/" + "/".join(pieces), "/v1/" + "/".join(rest), "/" + "/".join(rest), "/api/" + "/".join(rest)):
        if right in paths and right != "/":
            return f"There is nothing at this path; use {right}."
    if rest[:2] == ["messages", "batches"]:
        rest = rest[1:]
    if rest[:1] and rest[0] in NOT_SERVED:
        return f"{NOT_SERVED[rest[0]]} not served here; GET /openapi.json lists what is."
    return "There is nothing at this path; GET /openapi.json lists what there is."
