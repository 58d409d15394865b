"""The documentation says what the code does."""

from __future__ import annotations

from processes import ROOT

from gateway.settings import documentation


def test_every_setting_is_documented_with_its_default() -> None:
    """The table is the output of `python -m gateway.settings`."""
    assert "\n".join(documentation()) in (ROOT / "docs" / "gateway.md").read_text()
