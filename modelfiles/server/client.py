"""A client for the part of Ollama's HTTP API that makes and checks models (https://docs.ollama.com/api).

`POST /api/create` answers 200 even when it fails; the truth is in its stream of JSON lines, which `create` reads.
"""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelfiles.ollama.versions import Version, parse_version

DEFAULT_SERVER = "http://127.0.0.1:11434"
CHUNK = 1 << 20
MAX_RESPONSE = 64 * 2**20
_HEADERS = {"Content-Type": "application/json", "Connection": "close"}

# Called with how many bytes more were read or sent.
Progress = Callable[[int], None]


class OllamaError(Exception):
    """The server refused, failed or could not be reached; one sentence, in its own words where it has some."""


class OllamaClient:
    """An Ollama server. `url` may leave out the scheme and port, as OLLAMA_HOST does."""

    def __init__(self, url: str = DEFAULT_SERVER, timeout: float = 600) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise OllamaError(f"{url!r} is not the address of a server; write it like {DEFAULT_SERVER}.")
        self.https = parts.scheme == "https"
        self.host, self.port = parts.hostname, port or (443 if self.https else 11434 if "://" not in url else 80)
        self.prefix, self.timeout = parts.path.rstrip("/"), timeout

    def version(self) -> Version:
        text = str(self._json("GET", "/api/version").get("version", ""))
        try:
            return parse_version(text)
        except ValueError as error:
            raise OllamaError(f"the server at {self.host}:{self.port} is no Ollama: {error}.") from None

    def show(self, model: str) -> dict[str, Any]:
        """Capabilities, parameters, template and metadata of a model."""
        return self._json("POST", "/api/show", {"model": model})

    def chat(self, model: str, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One answer, not streamed. `more` are further fields of the request."""
        return self._json("POST", "/api/chat", {"model": model, "messages": messages, "stream": False, **more})

    def has_blob(self, digest: str) -> bool:
        connection = self._request("HEAD", f"/api/blobs/{digest}")
        with connection.getresponse() as response:
            return response.status == 200

    def upload(self, path: Path, digest: str, progress: Progress) -> None:
        """Sends a file as a blob."""

        def body() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
                    progress(len(chunk))

        headers = {"Content-Length": str(path.stat().st_size)}
        connection = self._request("POST", f"/api/blobs/{digest}", body(), headers)
        with self._response(connection) as response:
            if response.status not in (200, 201):
                raise OllamaError(f"uploading {path.name} failed: {_message(response)}.")

    def create(self, request: dict[str, Any]) -> Iterator[str]:
        """Creates a model, yielding the server's status lines. Raises OllamaError unless the last one is "success"."""
        connection = self._request("POST", "/api/create", json.dumps(request).encode())
        status = ""
        with self._response(connection) as response:
            if response.status != 200:
                raise OllamaError(f"creating {request['model']} failed: {_message(response)}.")
            for line in self._lines(response):
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if not isinstance(event, dict):
                    raise OllamaError("the server's answer is not JSON; is this an Ollama?")
                if "error" in event:
                    raise OllamaError(f"creating {request['model']} failed: {event['error']}.")
                status = str(event.get("status", ""))
                yield status
        if status != "success":
            raise OllamaError(f"creating {request['model']} ended at {status!r} without success.")

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while line := response.readline(1 << 20):
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise OllamaError(f"the Ollama at {self.host}:{self.port} broke off: {error}.") from None

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = self._request(method, path, json.dumps(body).encode() if body is not None else None)
        with self._response(connection) as response:
            if response.status != 200:
                raise OllamaError(f"{path} failed: {_message(response)}.")
            try:
                value = json.loads(response.read(MAX_RESPONSE))
            except ValueError:
                value = None
        if not isinstance(value, dict):
            raise OllamaError(f"{path} did not answer with JSON; is {self.host}:{self.port} an Ollama?")
        return value

    def _request(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.https else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=self.timeout)
        try:
            connection.request(
                method, self.prefix + path, body, {"Content-Type": "application/json", **(headers or {})}
            )
        except (OSError, http.client.HTTPException) as error:
            raise OllamaError(f"no Ollama answers at {self.host}:{self.port}: {error}.") from None
        return connection

    def _response(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        try:
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise OllamaError(f"the Ollama at {self.host}:{self.port} broke off: {error}.") from None


def file_digest(path: Path, progress: Progress) -> str:
    """The digest that Ollama names a blob by."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return f"sha256:{digest.hexdigest()}"


def _message(response: http.client.HTTPResponse) -> str:
    raw = response.read(10_000)
    try:
        return str(json.loads(raw)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status}"
