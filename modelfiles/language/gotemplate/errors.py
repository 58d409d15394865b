"""The one error of this package, and the limit on nesting that all of it keeps."""

from __future__ import annotations

MAX_DEPTH = 100  # of blocks, parentheses and templates that call one another


class GoTemplateError(ValueError):
    """The template does not parse, or cannot be run on these values."""
