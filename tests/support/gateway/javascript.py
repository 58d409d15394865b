"""The JavaScript clients of tests/clients, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.support.paths import ROOT

CLIENTS = ROOT / "tests" / "clients"


def run_javascript(script: str, url: str) -> dict[str, Any]:
    """What a script printed of each of its checks; without Node and the clients the test is skipped."""
    node = shutil.which("node")
    if node is None or not (CLIENTS / "node_modules").is_dir():
        pytest.skip("the JavaScript clients need Node 20 or newer and: npm --prefix tests/clients ci")
    ended = subprocess.run([node, CLIENTS / script, url], capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    results: dict[str, Any] = json.loads(ended.stdout)
    return results
