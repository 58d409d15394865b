"""The fixtures of a signed-in client."""

from tests.support.studio.applications import client, studio
from tests.support.unmeasured import unmeasured_children

__all__ = ["client", "studio", "unmeasured_children"]
