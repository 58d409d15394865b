"""A stand-in for the Hugging Face hub and for ModelScope: one model and one dataset, served from folders."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves `repositories` ("models/owner/name" -> folder) in both hubs' ways; `asked` is every request's path."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.asked.append(self.path)
                found = hub.answer(self.path, repositories)
                body = found if found is not None else b'{"error": "Repository not found"}'
                self.send_response(200 if found is not None else 404)
                if found is None:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, repositories: dict[str, Path]) -> bytes | None:
        """The body, or None for what is not there."""
        url = urlsplit(path)
        for name, folder in repositories.items():
            kind, owner_name = name.split("/", 1)
            prefix = owner_name if kind == "models" else name
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [str(file.relative_to(folder)) for file in files]
            if url.path == f"/api/{name}/revision/main":
                return json.dumps(
                    {"id": owner_name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
                ).encode()
            if url.path == f"/api/{name}/tree/{COMMIT}":
                return json.dumps([self._entry(folder, n) for n in names]).encode()
            if url.path.startswith(f"/{prefix}/resolve/{COMMIT}/"):
                return (folder / url.path.split(COMMIT + "/")[1]).read_bytes()
            if url.path.startswith(f"/api/v1/{name}/repo/"):
                listed = [{"Name": Path(n).name, "Path": n, "Type": "blob", "Size": (folder / n).stat().st_size,
                           "Sha256": hashlib.sha256((folder / n).read_bytes()).hexdigest(), "Revision": "master"}
                          for n in names]  # fmt: skip
                return json.dumps(
                    {"Code": 200, "Success": True, "Data": {"Files": listed}, "TotalCount": len(listed)}
                ).encode()
            if url.path == f"/api/v1/{name}/repo":
                return (folder / parse_qs(url.query)["FilePath"][0]).read_bytes()
        return None

    def _entry(self, folder: Path, name: str) -> dict[str, object]:
        data = (folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}
