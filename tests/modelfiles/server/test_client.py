"""The address of a server is read as Ollama reads OLLAMA_HOST (its envconfig)."""

from __future__ import annotations

import pytest

from modelfiles.server.client import OllamaError, server_url


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        (":18500", "http://127.0.0.1:18500"),
        ('":18500"', "http://127.0.0.1:18500"),
        (" 'gpu-box' ", "http://gpu-box:11434"),
        ("gpu-box:80", "http://gpu-box:80"),
        ("0.0.0.0", "http://0.0.0.0:11434"),
        ("[::1]:9", "http://[::1]:9"),
        ("http://gpu-box", "http://gpu-box:80"),
        ("https://ollama.example/prefix/", "https://ollama.example:443/prefix"),
    ],
)
def test_the_address_of_a_server_may_leave_out_its_parts(address: str, url: str) -> None:
    assert server_url(address) == url


@pytest.mark.parametrize("address", ["http://:x", "ftp://gpu-box", "http://[::1", "gpu box", "gpu-box:99999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(OllamaError, match="not the address of a server"):
        server_url(address)
