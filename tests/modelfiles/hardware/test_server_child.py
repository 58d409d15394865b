"""A server that does not start says why in a sentence, whether its log is text or JSON."""

from __future__ import annotations

import json
import sys

import pytest

from modelfiles.hardware.server_child import ServerChildError, server_child

MESSAGE = json.dumps({"time": 1.0, "level": "error", "source": "lensmith", "message": "No GPU is free."})
REQUEST = json.dumps({"time": 2.0, "path": "/ready", "status": 503})


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["Loading.", "Error: the port is taken."], "Error: the port is taken."),
        ([MESSAGE], "No GPU is free."),
        ([MESSAGE, REQUEST, ""], "No GPU is free."),
        ([REQUEST], "it said nothing"),
        ([], "it said nothing"),
        (["7"], "7"),
    ],
)
def test_the_last_message_is_the_reason(lines: list[str], reason: str) -> None:
    command = [sys.executable, "-S", "-c", f"print({chr(10).join(lines)!r}); raise SystemExit(1)"]
    with (
        pytest.raises(ServerChildError, match="did not start: ") as caught,
        server_child(command, "http://127.0.0.1:9/ready", "fake"),
    ):
        pass
    assert str(caught.value).endswith(f"did not start: {reason}")
