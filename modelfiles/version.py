"""The version of this software, also where it runs from a checkout that was never installed."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lensmith_version() -> str:
    """The installed package's, else the checkout's; "unknown" where neither says it."""
    try:
        return metadata.version("lensmith")
    except metadata.PackageNotFoundError:
        text = PROJECT.read_text() if PROJECT.exists() else ""
        found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
        return found[1] if found else "unknown"
