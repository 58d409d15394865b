"""lensmith.json: where a merged folder came from, and what was proven of it since."""

from __future__ import annotations

import json
from typing import Any

PROVENANCE = "lensmith.json"
VERIFIED = "verified"  # a list of what `lensmith verify` found, an entry for each engine


def to_bytes(fields: dict[str, Any]) -> bytes:
    """The file's bytes."""
    return (json.dumps(fields, indent=2) + "\n").encode()


def without_verification(raw: bytes) -> bytes:
    """The file's bytes as they were before anything was verified: a proof does not make it another model."""
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    if not isinstance(fields, dict) or VERIFIED not in fields:
        return raw
    del fields[VERIFIED]
    return to_bytes(fields)
