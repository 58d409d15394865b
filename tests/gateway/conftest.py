from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from click.testing import CliRunner

from gateway.tenants.cli import keys
from tests.support.gateway.processes import Process, fake_engine, lensmith_serve


@pytest.fixture(scope="session")
def engine() -> Iterator[Process]:
    """A fake engine that runs by itself."""
    with fake_engine() as process:
        yield process


@pytest.fixture(scope="session")
def gateway(engine: Process) -> Iterator[Process]:
    """`lensmith serve --engine URL` in front of it."""
    with lensmith_serve("--engine", engine.url + "/v1", "--body-timeout", "1") as process:
        process.wait_until("/ready", 200)
        yield process


@pytest.fixture
def client(gateway: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="the-client's-secret", max_retries=0) as client:
        yield client


@pytest.fixture
def post(gateway: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def add(key_file: Path) -> Callable[..., str]:
    """Make a key; give its secret."""

    def made(name: str, *options: str) -> str:
        result = CliRunner().invoke(keys, ["add", name, "--file", str(key_file), *options])
        assert result.exit_code == 0, result.output
        return result.output.strip()

    return made
