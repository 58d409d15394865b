"""A studio without a browser."""

from tests.support.studio.applications import client, studio

__all__ = ["client", "studio"]
