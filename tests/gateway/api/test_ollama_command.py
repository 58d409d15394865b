"""What Ollama's own command sends, as it was seen to (version 0.33), and what it needs to find in the answers.

The command is a program in Go that this project's machines cannot install. Its client decodes every answer into typed
structures: a field of another type than these ends the command.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import httpx
import pytest

from tests.support.gateway.processes import Process
from tests.support.gateway.requests import picture

PNG = picture("PNG", (60, 40)).partition(",")[2]
COMMAND = {
    "User-Agent": "ollama/0.33.0 (amd64 linux) Go/go1.27.3",
    "Accept": "application/json",
    "Content-Type": "application/json",
    "Accept-Encoding": "gzip",
}
STREAMED = {**COMMAND, "Accept": "application/x-ndjson"}
SHOW = '{"model":"%s","system":"","template":"","verbose":false,"options":null,"name":""}'
GENERATE = '{"model":"fake","prompt":%s,"suffix":"","system":"","template":"",%s}'
CHAT = (
    '{"model":"fake","messages":[{"role":"user","content":"What is it?","images":["%s"]},'
    '{"role":"assistant","content":"A circle."},{"role":"user","content":"count 3"}],"options":{}}'
)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert all(len(line) < 512_000 for line in answer.content.splitlines()), "the command's buffer for a line"
    return [json.loads(line) for line in answer.content.splitlines()]


def test_every_command_asks_first_whether_the_server_lives(gateway: Process) -> None:
    answer = httpx.request("HEAD", gateway.url + "/", headers=COMMAND)
    assert (answer.status_code, answer.content) == (200, b"")


def test_list_and_ps_print_what_they_cut_out_of_the_answer(gateway: Process) -> None:
    for path, when in (("/api/tags", "modified_at"), ("/api/ps", "expires_at")):
        (model,) = httpx.get(gateway.url + path, headers=COMMAND).json()["models"]
        assert isinstance(model["name"], str)
        assert len(model["digest"]) >= 12, "it takes the first twelve letters and breaks down with fewer"
        assert isinstance(model["size"], int)
        assert datetime.fromisoformat(model[when].replace("Z", "+00:00")).tzinfo == timezone.utc


def test_show_prints_a_model_and_run_learns_from_it_that_images_may_be_sent(gateway: Process) -> None:
    shown = httpx.post(gateway.url + "/api/show", content=SHOW % "fake", headers=COMMAND).json()
    assert {"completion", "vision", "tools"} == set(shown["capabilities"])
    assert isinstance(shown["details"]["family"], str)
    assert isinstance(shown.get("model_info", {}), dict)


def test_run_of_a_model_that_there_is_not_wants_to_pull_it_and_says_why_it_cannot(gateway: Process) -> None:
    answer = httpx.post(gateway.url + "/api/show", content=SHOW % "missing", headers=COMMAND)
    assert (answer.status_code, answer.json()) == (404, {"error": "model 'missing' not found"})
    pull = '{"model":"missing","username":"","password":"","name":""}'
    answer = httpx.post(gateway.url + "/api/pull", content=pull, headers=STREAMED)
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("Pulling models is not served here")


@pytest.mark.parametrize("keep", ["5m0s", "0s"], ids=["run", "stop"])
def test_run_loads_a_model_and_stop_unloads_it_by_a_prompt_that_is_empty(gateway: Process, keep: str) -> None:
    body = GENERATE % ('""', f'"keep_alive":"{keep}","options":null')
    (last,) = lines(httpx.post(gateway.url + "/api/generate", content=body, headers=STREAMED))
    assert (last["done"], last["response"]) == (True, "")


@pytest.mark.parametrize(
    "rest", ['"options":{}', f'"images":["{PNG}"],"options":{{}}', '"format":"json","options":{}', '"think":false']
)
def test_run_with_a_prompt_prints_the_answer_as_it_comes(gateway: Process, rest: str) -> None:
    body = GENERATE % ('"count 3"', rest)
    *parts, last = lines(httpx.post(gateway.url + "/api/generate", content=body, headers=STREAMED))
    assert "".join(part["response"] for part in parts) == "0 1 2 "
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 3)
    assert all(isinstance(last[name], int) for name in ("total_duration", "prompt_eval_count", "eval_duration"))


def test_run_at_a_terminal_goes_on_with_the_conversation(gateway: Process) -> None:
    *parts, last = lines(httpx.post(gateway.url + "/api/chat", content=CHAT % PNG, headers=STREAMED))
    assert "".join(part["message"]["content"] for part in parts) == "0 1 2 "
    assert {part["message"]["role"] for part in (*parts, last)} == {"assistant"}


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "/api/copy", '{"source":"fake","destination":"y"}', "Copying models"),
        ("DELETE", "/api/delete", '{"model":"fake","name":""}', "Deleting models"),
        ("POST", "/api/create", '{"model":"y","from":"fake","name":""}', "Creating models"),
        ("HEAD", "/api/blobs/sha256:0", "", ""),
        ("POST", "/api/push", '{"model":"fake","username":"","password":"","name":""}', "Pushing models"),
        ("POST", "/api/embed", '{"model":"fake","input":"x","options":null}', "Embeddings"),
        ("POST", "/api/me", "", "Signing in"),
    ],
)
def test_what_is_not_served_says_so_in_one_sentence(
    gateway: Process, method: str, path: str, body: str, says: str
) -> None:
    answer = httpx.request(method, gateway.url + path, content=body, headers=COMMAND)
    assert answer.status_code == 404
    if method != "HEAD":
        assert answer.json()["error"].startswith(says)
        assert "not served here" in answer.json()["error"]
