"""The log of the parent and its workers."""

from __future__ import annotations

import logging

LOG = logging.getLogger("lensmith.workers")
