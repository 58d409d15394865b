"""Scores of what an OpenAI endpoint serves: the same answers, many at once, resumable, patient with a busy server."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import evaluate
from finetune.recipe.schema import Recipe
from gateway.engines.base import base_url
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]


class Server:
    """An OpenAI API that tells the number and bytes of the images it got.

    refusals: (status, headers) of what it answers instead, by the number of the request; asked: requests' bodies.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.refusals: dict[int, tuple[int, dict[str, str]]] = {}
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "tuned"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.asked.append(body)
                    server.keys.add(self.headers.get("Authorization"))
                    refusal = server.refusals.get(len(server.asked))
                    server.busy += 1
                    server.most_busy = max(server.most_busy, server.busy)
                time.sleep(0.1)  # long enough for the others to come
                with server.lock:
                    server.busy -= 1
                if refusal:
                    self.reply(refusal[0], {"error": {"message": "not now"}}, refusal[1])
                else:
                    self.reply(200, {"choices": [{"message": {"role": "assistant", "content": said(body)}}]})

            def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def said(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"] if content[0] != "h" else []
    return f"{len(urls)} images, {sum(len(base64.b64decode(url.split(',')[1])) for url in urls)} bytes"


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def rows(dataset: Path) -> list[str]:
    """Eight rows with one image, one with two, one without; the answers that the server will give."""
    sizes = [(dataset / f"images/{n}.png").stat().st_size for n in range(8)]
    answers = [f"1 images, {size} bytes" for size in sizes]
    asked = [ask("what?", answer, n) for n, answer in enumerate(answers)]
    asked.append(ask("both?", f"2 images, {sizes[0] + sizes[1]} bytes", 0, 1))
    asked.append(ask("hello", "0 images, 0 bytes"))
    write_dataset(dataset, asked)
    return [*answers, asked[8]["conversations"][1]["value"], "0 images, 0 bytes"]


def predicted(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "out/generated_predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["predict"] for line in lines]


def test_what_is_served_is_scored(
    recipe: MakeRecipe, dataset: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    answers = rows(dataset)
    result = evaluate(recipe(per_device_eval_batch_size=4, model_name_or_path="nowhere"), endpoint=server.url)
    assert result.exact_match == 1
    assert predicted(tmp_path) == answers
    assert server.most_busy == 4
    assert server.keys == {"Bearer secret"}
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.asked} == {("tuned", 0, 8)}
    assert all(body["messages"][-1]["role"] == "user" for body in server.asked)


def test_a_busy_server_is_waited_for(recipe: MakeRecipe, dataset: Path, tmp_path: Path, server: Server) -> None:
    answers = rows(dataset)
    server.refusals = {1: (429, {"Retry-After": "0.01"}), 5: (503, {"Retry-After": "0.01"})}
    evaluate(recipe(per_device_eval_batch_size=2), endpoint=server.url)
    assert predicted(tmp_path) == answers
    assert len(server.asked) == len(answers) + 2


def test_a_refusal_stops_and_the_same_command_goes_on(
    recipe: MakeRecipe, dataset: Path, tmp_path: Path, server: Server
) -> None:
    answers = rows(dataset)
    server.refusals = {4: (400, {})}
    with pytest.raises(FinetuneError, match=r"shapes\.json, row 4: .* does not answer \(400: not now\)"):
        evaluate(recipe(per_device_eval_batch_size=1), endpoint=server.url)
    evaluate(recipe(per_device_eval_batch_size=1), endpoint=server.url)
    assert predicted(tmp_path) == answers
    assert len(server.asked) == 4 + 7


@pytest.mark.parametrize("path", ["", "/prefix"])
@pytest.mark.parametrize("end", ["/v1", "/v1/", "", "/"])
def test_an_endpoint_that_is_not_there_is_one_sentence(recipe: MakeRecipe, path: str, end: str) -> None:
    url = f"http://127.0.0.1:9{path}{end}"
    assert str(base_url(url) / "v1").endswith(f"{path}/v1"), "the same forms as `lensmith bench` takes"
    with pytest.raises(FinetuneError, match=rf"--endpoint: http://127.0.0.1:9{path}/v1/models cannot be read"):
        evaluate(recipe(), endpoint=url)
