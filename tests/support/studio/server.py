"""A studio as a process of its own, and a client that is signed in."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process, until

LINK = re.compile(r"http://\S+/login\?token=\S+")


class StudioServer(Process):
    """`lensmith studio` over a folder; `link` is the one it printed last."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        port = free_port()
        command = [sys.executable, "-m", "lensmith", "studio", "--folder", str(folder), "--port", str(port), *options]
        super().__init__(command, port, PYTHONUNBUFFERED="1")
        self.wait_until("/login", 200)

    def __enter__(self) -> StudioServer:
        return self

    @property
    def link(self) -> str:
        found: list[str] = until("a link is printed", lambda: LINK.findall(self.log()))
        return found[-1]

    def client(self) -> httpx.Client:
        """A client with a session, which sends the token that forms need."""
        return sign_in(httpx.Client(base_url=self.url + "/", timeout=30), self.link)


def sign_in(client: httpx.Client, link: str) -> httpx.Client:
    """Follow the printed link and take the token from the page."""
    page = client.get(link, follow_redirects=True)
    assert page.status_code == 200, page.text
    found = re.search(r'name="csrf-token" content="(\w+)"', page.text)
    assert found is not None
    client.headers["x-csrf-token"] = found[1]
    return client


@pytest.fixture(scope="module")
def studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioServer]:
    """One studio for all tests of a module, over an empty workspace."""
    with StudioServer(tmp_path_factory.mktemp("studio") / "workspace") as server:
        yield server
