"""Pictures and datasets for the tests of the page Data, and the way from an upload to its rows."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import httpx
from PIL import Image

from tests.support.gateway.processes import until


def picture(colour: str = "red", size: tuple[int, int] = (40, 30), kind: str = "PNG", **options: Any) -> bytes:
    """A picture file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def lines(*records: Any) -> bytes:
    """A JSON lines file."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def zipped(files: Mapping[str, bytes]) -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def new_dataset(client: httpx.Client, name: str = "mine", files: Mapping[str, bytes] | None = None) -> str:
    """The name of a new dataset with these files, not read yet."""
    made = client.post("/data", data={"source": "files", "name": name}).json()["name"]
    for path, data in (files or {}).items():
        answer = client.put(f"/data/{made}/files/{path}", content=data)
        assert answer.status_code == 204, answer.text
    return str(made)


def read_rows(client: httpx.Client, name: str, **fields: str) -> str:
    """Start the import as the page does, wait for its end; the page that is shown then."""
    answer = client.post(f"/data/{name}/import", data={"columns": "", **fields}, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    until("the rows are read", lambda: client.get(f"/data/{name}/progress").status_code == 204)
    return client.get(f"/data/{name}", headers={"accept": "text/html"}).text


def imported(client: httpx.Client, files: Mapping[str, bytes], name: str = "mine") -> str:
    """The page of a new dataset of these files."""
    return read_rows(client, new_dataset(client, name, files))
