"""A running studio and a signed-in browser page."""

from tests.support.studio.browser import browser, page
from tests.support.studio.server import studio_server
from tests.support.unmeasured import unmeasured_children

__all__ = ["browser", "page", "studio_server", "unmeasured_children"]
