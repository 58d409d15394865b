"""The fixtures of a signed-in client, and a workspace with data."""

from tests.support.studio.applications import client, studio
from tests.support.studio.data import shapes

__all__ = ["client", "shapes", "studio"]
