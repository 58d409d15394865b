"""Requests of the gateway's tests, and what every refusal must look like."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
from click.testing import CliRunner, Result
from PIL import Image

from gateway.tenants.cli import keys


def ask(text: str) -> list:
    return [{"role": "user", "content": text}]


def picture(format: str = "PNG", size: tuple[int, int] = (40, 30)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, format)
    return f"data:image/{format.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def keys_command(*arguments: str) -> Result:
    return CliRunner().invoke(keys, list(arguments))


CHAT = "/v1/chat/completions"


def envelope(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, which must be OpenAI's envelope and short."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert len(answer.content) < 8192
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return error
