"""The documentation says what the code does."""

from __future__ import annotations

import dataclasses

from processes import ROOT

from gateway.settings import Settings


def test_every_limit_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "gateway.md").read_text()
    rows = [
        f"| `--{setting.name.replace('_', '-')}` | {setting.default} | {setting.metadata['help']} |"
        for setting in dataclasses.fields(Settings)
    ]
    assert [row for row in rows if row not in text] == []
