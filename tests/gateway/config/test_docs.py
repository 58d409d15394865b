"""The documentation says what the code does."""

from __future__ import annotations

from gateway.config import settings
from gateway.telemetry import metrics
from tests.support.paths import ROOT


def test_every_setting_is_documented_with_its_default() -> None:
    """The table is the output of `python -m gateway.config.settings`."""
    assert "\n".join(settings.documentation()) in (ROOT / "docs" / "gateway.md").read_text()


def test_every_metric_is_documented() -> None:
    """The table is the output of `python -m gateway.telemetry.metrics`."""
    assert "\n".join(metrics.documentation()) in (ROOT / "docs" / "observability.md").read_text()
