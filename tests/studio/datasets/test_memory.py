"""A large upload goes to the disk, not into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support.studio.datasets import new_dataset
from tests.support.studio.server import StudioServer

MEGABYTE = 2**20
SIZE = 160  # MiB; benchmarks/studio_data.py uploads 1 GiB


def test_an_upload_does_not_grow_the_memory(tmp_path: Path) -> None:
    server = StudioServer(tmp_path / "workspace")
    try:
        with contextlib.closing(server.client()) as client:
            name = new_dataset(client, files={"small.bin": bytes(MEGABYTE)})
            process = psutil.Process(server.process.pid)
            before = most = process.memory_info().rss

            def chunks() -> Iterator[bytes]:
                nonlocal most
                for _ in range(SIZE):
                    yield bytes(MEGABYTE)
                    most = max(most, process.memory_info().rss)

            headers = {"content-length": str(SIZE * MEGABYTE)}
            answer = client.put(f"/data/{name}/files/large.bin", content=chunks(), headers=headers)
            assert answer.status_code == 204
            assert most - before < 50 * MEGABYTE
            file = tmp_path / "workspace" / "datasets" / name / "files" / "large.bin"
            assert file.stat().st_size == SIZE * MEGABYTE
    finally:
        server.end()
