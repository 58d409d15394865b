"""A client for the part of Ollama's HTTP API that makes and checks models (https://docs.ollama.com/api).

`POST /api/create` answers 200 even when it fails; the truth is in its stream of JSON lines, which `create` reads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from modelfiles.ollama.versions import Version, parse_version

DEFAULT_SERVER = "http://127.0.0.1:11434"
CHUNK = 1 << 20  # bytes
DEFAULT_PORTS = {"http": 80, "https": 443}

# Called with how many bytes more were read or sent.
Progress = Callable[[int], None]


class OllamaError(Exception):
    """The server refused, failed or could not be reached; one sentence, in its own words where it has some."""


def server_url(address: str) -> str:
    """The URL that OLLAMA_HOST or --server means, read as Ollama's envconfig does. Raises OllamaError.

    The scheme, host and port may each be left out (`:18500`, `gpu-box`, `https://ollama.example`), and quotes around
    the whole are dropped.
    """
    text = address.strip().strip("\"'")
    scheme, separator, rest = text.rpartition("://")
    scheme = scheme or "http"
    rest = f"127.0.0.1{rest}" if rest.startswith(":") else rest or "127.0.0.1"
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port or (DEFAULT_PORTS[scheme] if separator else 11434)
        if not parts.hostname or not re.fullmatch(r"[\w.:%-]+", parts.hostname):
            raise ValueError(text)
    except (ValueError, KeyError):
        raise OllamaError(f"{address!r} is not the address of a server; write it like {DEFAULT_SERVER}.") from None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}:{port}{parts.path.rstrip('/')}"


class OllamaClient:
    """An Ollama server. address: see `server_url`; timeout: seconds without a byte. Each call may raise OllamaError."""

    def __init__(self, address: str = DEFAULT_SERVER, timeout: float = 600) -> None:
        url = server_url(address)
        self.location = urlsplit(url).netloc
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=False)

    def version(self) -> Version:
        text = str(self._json("GET", "/api/version").get("version", ""))
        try:
            return parse_version(text)
        except ValueError as error:
            raise OllamaError(f"the server at {self.location} is no Ollama: {error}.") from None

    def show(self, model: str) -> dict[str, Any]:
        """Capabilities, parameters, template and metadata of a model."""
        return self._json("POST", "/api/show", {"model": model})

    def chat(self, model: str, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One answer, not streamed. `more` are further fields of the request."""
        return self._json("POST", "/api/chat", {"model": model, "messages": messages, "stream": False, **more})

    def has_blob(self, digest: str) -> bool:
        with self._stream("HEAD", f"/api/blobs/{digest}") as response:
            return response.status_code == 200

    def upload(self, path: Path, digest: str, progress: Progress) -> None:
        """Sends a file as a blob."""

        def body() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
                    progress(len(chunk))

        headers = {"Content-Length": str(path.stat().st_size)}
        with self._stream("POST", f"/api/blobs/{digest}", content=body(), headers=headers) as response:
            if response.status_code not in (200, 201):
                raise OllamaError(f"uploading {path.name} failed: {_message(response)}.")

    def create(self, request: dict[str, Any]) -> Iterator[str]:
        """Creates a model, yielding the server's status lines. Raises OllamaError unless the last one is "success"."""
        status = ""
        with self._stream("POST", "/api/create", json=request) as response:
            if response.status_code != 200:
                raise OllamaError(f"creating {request['model']} failed: {_message(response)}.")
            for line in filter(str.strip, response.iter_lines()):
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

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._stream(method, path, json=body) as response:
            if response.status_code != 200:
                raise OllamaError(f"{path} failed: {_message(response)}.")
            try:
                value = json.loads(response.read())
            except ValueError:
                value = None
        if not isinstance(value, dict):
            raise OllamaError(f"{path} did not answer with JSON; is {self.location} an Ollama?")
        return value

    @contextmanager
    def _stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """A response whose body is not read yet; every failure of the connection becomes an OllamaError."""
        try:
            with self._http.stream(method, path, **request) as response:
                yield response
        except httpx.ConnectError as error:
            raise OllamaError(f"no Ollama answers at {self.location}: {error}.") from None
        except httpx.HTTPError as error:
            raise OllamaError(f"the Ollama at {self.location} broke off: {error}.") from None


def file_digest(path: Path, progress: Progress) -> str:
    """The digest that Ollama names a blob by."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return f"sha256:{digest.hexdigest()}"


def _message(response: httpx.Response) -> str:
    try:
        return str(json.loads(response.read())["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
