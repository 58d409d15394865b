"""The fixtures of a signed-in client."""

from tests.support.studio.applications import client, studio

__all__ = ["client", "studio"]
