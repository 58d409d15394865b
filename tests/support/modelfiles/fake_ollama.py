"""An HTTP server that answers as the recorded Ollama did (goldens/api_create_trace.json)."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from modelfiles.language import gotemplate
from modelfiles.ollama.prompts import Conversation, render_renderer, render_template
from tests.support.paths import GOLDENS

TRACE = json.loads((GOLDENS / "api_create_trace.json").read_text())
EXCHANGES = {entry["request"]["model"]: entry for entry in TRACE if isinstance(entry, dict) and "request" in entry}
SHOW = next(entry["show"] for entry in TRACE if isinstance(entry, dict) and "show" in entry)
VERSION = next(entry["version"] for entry in TRACE if isinstance(entry, dict) and "version" in entry)


class FakeOllama(ThreadingHTTPServer):
    """Keeps what it was sent. The flags make it misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, int] = {}
        self.uploads: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.template = ""
        self.show: dict[str, Any] = dict(SHOW)
        self.version = VERSION
        self.blind = False  # answers without looking at the image
        self.empty = False  # replies without counts, log-probabilities and text
        self.fused = False  # takes two neighbouring images for one
        self.image_tokens = 1024
        self.answers: dict[str, str] = {}  # question -> answer of /api/chat
        self.reference: dict[str, str] = {}  # question -> answer of /v1/chat/completions
        self.cut = False  # closes the connection in the middle of create

    def show_qwen3vl(self) -> None:
        """Describes its model as Ollama does a healthy one that was made of `make_folder`."""
        shape = {"general.architecture": "qwen3vl", "qwen3vl.block_count": 2, "qwen3vl.embedding_length": 64}
        stops = 'stop "<|im_end|>"\nstop "<|endoftext|>"'
        parameters = "num_ctx 11264\nnum_predict 2048\nrepeat_penalty 1.0\n" + stops
        self.show |= {"model_info": shape, "parameters": parameters}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeOllama

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.rpartition("/")[2] in self.server.blobs else 404, b"")

    def do_GET(self) -> None:
        self._json({"data": [{"id": "reference"}]} if self.path == "/v1/models" else self.server.version)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/blobs/"):
            digest = self.path.rpartition("/")[2]
            if digest != f"sha256:{hashlib.sha256(body).hexdigest()}":
                return self._json({"error": "digest mismatch"}, 400)
            self.server.blobs[digest] = len(body)
            self.server.uploads.append(digest)
            return self._answer(201, b"")
        request = json.loads(body)
        self.server.requests.append(request)
        if self.path == "/api/show":
            return self._json(self.server.show)
        if self.path == "/api/create":
            missing = [d for d in request.get("files", {}).values() if d not in self.server.blobs]
            if missing:
                return self._json({"error": f"blob {missing[0]} not found"}, 400)
            self.server.template = "" if "renderer" in request else request.get("template", "")
            stream = EXCHANGES[request["model"]]["stream"][: 2 if self.server.cut else None]
            return self._answer(200, "".join(json.dumps(line) + "\n" for line in stream).encode())
        if self.path == "/v1/chat/completions":
            *_, part = request["messages"][-1]["content"]
            return self._json({"choices": [{"message": {"content": self.server.reference[part["text"]]}}]})
        return self._json(self._chat(request))

    def _chat(self, request: dict[str, Any]) -> dict[str, Any]:
        messages = [{**m, "images": len(m.get("images", []))} for m in request["messages"]]
        conversation = Conversation("", messages, request.get("tools"))
        if request.get("_debug_render_only"):
            prompt = self._render(conversation)
            return {"_debug_info": {"rendered_template": prompt}}
        if self.server.empty:
            return {"model": request["model"], "done": True, "message": {"role": "assistant", "content": ""}}
        images = [image for message in request["messages"] for image in message.get("images", [])]
        seen = 0.0 if self.server.blind or not images else len(images[0]) / 1000
        top = [{"token": "a", "logprob": -1.0 - seen}, {"token": "b", "logprob": -2.0 + seen}]
        return {
            "message": {
                "role": "assistant",
                "content": self.server.answers.get(request["messages"][-1]["content"], ""),
            },
            "prompt_eval_count": 17 + self._tokens(request["messages"][-1]["content"], len(images)),
            "logprobs": [{"token": "a", "logprob": -1.0 - seen, "top_logprobs": top}],
        }

    def _render(self, conversation: Conversation) -> str:
        """The prompt by the template that the model was created with, else by the renderer."""
        if self.server.template:
            return render_template(gotemplate.parse_template(self.server.template), conversation, image="[img-0]")
        return render_renderer("qwen3-vl-instruct", conversation, image="[img-0]")

    def _tokens(self, text: str, images: int) -> int:
        """What images cost; blanks between `[img]` keep them from being fused."""
        if self.server.fused and "[img] [img]" not in text:
            images = -(-images // 2)
        return 0 if self.server.blind else images * self.server.image_tokens

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running() -> Iterator[FakeOllama]:
    server = FakeOllama()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
