"""A studio in the test's own process, for tests that need no browser and no port."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.app import make_app
from studio.security.access import Access, TokenAccess
from studio.web.render import Studio
from tests.support.studio.datasets import imported
from tests.support.studio.server import sign_in

BASE = "http://127.0.0.1:7860"


def studio_client(folder: Path, access: Access | None = None) -> TestClient:
    """A client of a new application over this folder; `client.app.state.studio` is its Studio. Not signed in."""
    return TestClient(make_app(folder, access or TokenAccess()), base_url=BASE, raise_server_exceptions=False)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """Signed in, over an empty workspace in tmp_path/workspace."""
    access = TokenAccess()
    with studio_client(tmp_path / "workspace", access) as opened:
        yield sign_in(opened, f"/login?token={access.token}")


@pytest.fixture
def studio(client: TestClient) -> Studio:
    """The object that pages work with, of the `client` fixture's application."""
    found: Studio = client.app.state.studio
    return found


def imported_once(folder: Path, files: Mapping[str, bytes], name: str = "mine") -> Path:
    """The datasets' folder of a workspace of its own, after an import; for `copy_datasets` of many tests."""
    access = TokenAccess()
    with studio_client(folder, access) as opened:
        imported(sign_in(opened, f"/login?token={access.token}"), files, name)
    return folder / "datasets"


def copy_datasets(datasets: Path, studio: Studio) -> None:
    """Put datasets that another workspace has imported into the studio's."""
    shutil.copytree(datasets, studio.workspace.folder / "datasets", dirs_exist_ok=True)
