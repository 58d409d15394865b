"""The chat page's engine: who answers, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from studio.jobs.job import processes_of
from studio.security.access import TokenAccess
from studio.web.render import Studio
from tests.support.gateway.processes import until
from tests.support.gateway.requests import picture
from tests.support.paths import SHAPES_VL
from tests.support.studio.applications import studio_client
from tests.support.studio.jobs import finished, printed, python
from tests.support.studio.server import sign_in
from tests.support.studio.tuned_run import WORD, tuned_run

SOURCE = "run:words"


def phase(client: TestClient) -> dict[str, Any]:
    state: dict[str, Any] = client.get("/chat/engine").json()
    return state


def ask(client: TestClient, side: str, text: str = "What is this?", **fields: Any) -> list[dict[str, Any]]:
    turns = [{"role": "user", "text": text, "images": [picture()]}]
    question = {"side": side, "turns": turns, "sampling": {"temperature": 0, "max_tokens": 8}, **fields}
    answer = client.post("/chat/answers", content=json.dumps(question))
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in events if event["kind"] == "text")


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A studio whose engine has shapes-vl and an adapter that always says WORD."""
    workspace = tmp_path_factory.mktemp("studio") / "workspace"
    tuned_run(workspace, "words")
    tuned_run(workspace, "colours", "yellow")
    access = TokenAccess()
    with studio_client(workspace, access) as opened:
        client = sign_in(opened, f"/login?token={access.token}")
        started = client.post("/chat/engine", data={"source": SOURCE}, follow_redirects=False)
        assert started.status_code == 303, started.text
        until("the engine is ready", lambda: phase(client)["phase"] == "ready")
        yield client
        client.post("/chat/engine/unload")
        jobs = client.app.state.studio.jobs
        finished(jobs, jobs.list("chat")[0])


def test_the_tuned_side_always_says_the_word_and_the_base_side_never(chatting: TestClient) -> None:
    for text in ("What is this?", "Which colour has the shape?", "Hello"):
        tuned, base = ask(chatting, "tuned", text), ask(chatting, "base", text)
        assert text_of(tuned).split() == [WORD] * 8
        assert WORD not in text_of(base)
        assert text_of(base)


def test_each_answer_says_who_made_it_as_the_engine_reports(chatting: TestClient) -> None:
    tuned, base = ask(chatting, "tuned")[0], ask(chatting, "base")[0]
    digest = chatting.app.state.studio.jobs.list("chat")[0].spec.about["digest"]
    assert tuned == {
        "kind": "maker",
        "model": "tuned",
        "weights": f"shapes-vl+{digest}",
        "adapter": digest,
        "right": True,
    }
    assert base == {"kind": "maker", "model": "shapes-vl", "weights": "shapes-vl", "adapter": "", "right": True}


def test_an_answer_ends_with_its_tokens_and_times(chatting: TestClient) -> None:
    end = ask(chatting, "tuned")[-1]
    assert end["kind"] == "end"
    assert end["tokens"] == 8
    assert end["cut"]
    assert end["prompt_tokens"] > 8
    assert 0 < end["first"] <= end["total"]


def test_a_conversation_goes_on_with_its_own_answers(chatting: TestClient) -> None:
    one = ask(chatting, "base")[-1]["prompt_tokens"]
    turns = [{"role": "user", "text": "Hi"}, {"role": "assistant", "text": "Yes"}, {"role": "user", "text": "More"}]
    two = ask(chatting, "base", turns=turns, system="You answer.")[-1]
    assert two["kind"] == "end"
    assert two["prompt_tokens"] != one


def test_what_the_gateway_refuses_is_its_own_sentence(chatting: TestClient) -> None:
    turns = [{"role": "user", "text": "x", "images": ["data:image/png;base64,AAAA"]}]
    [event] = ask(chatting, "base", turns=turns)
    assert event["kind"] == "error"
    assert "image" in event["message"]
    [event] = ask(chatting, "base", sampling={"temperature": 9})
    assert "temperature" in event["message"]


def test_the_same_source_is_never_loaded_twice_and_another_one_is_refused(chatting: TestClient) -> None:
    jobs = chatting.app.state.studio.jobs
    before = [job.id for job in jobs.list("chat")]
    assert chatting.post("/chat/engine", data={"source": SOURCE}, follow_redirects=False).status_code == 303
    refused = chatting.post("/chat/engine", data={"source": "run:colours"})
    assert refused.status_code == 409
    assert "Unload it first" in refused.json()["error"]
    assert [job.id for job in jobs.list("chat")] == before


def test_a_question_that_is_none_is_refused_with_its_field(chatting: TestClient) -> None:
    for body in ({"side": "else", "turns": []}, {"side": "base", "turns": [{"role": "system", "text": "x"}]}):
        answer = chatting.post("/chat/answers", content=json.dumps(body))
        assert answer.status_code == 400
    assert "turns.0.role" in answer.json()["error"]
    assert chatting.post("/chat/answers", content=b" " * ((32 << 20) + 1)).status_code == 413


def test_what_was_said_is_kept_for_the_next_page(chatting: TestClient) -> None:
    assert chatting.get("/chat/conversation").json() == {"exchanges": []}
    said = {"text": "What?", "images": [picture()], "answers": {"base": {"text": "<b>", "events": [{"kind": "end"}]}}}
    kept = chatting.put("/chat/conversation", content=json.dumps({"exchanges": [said]}))
    assert kept.status_code == 204
    assert chatting.get("/chat/conversation").json() == {"exchanges": [said]}
    wrong = chatting.put("/chat/conversation", content=json.dumps({"exchanges": [said | {"answers": {"other": {}}}]}))
    assert wrong.status_code == 400
    assert "exchanges" in wrong.json()["error"]
    assert chatting.get("/chat/conversation").json() == {"exchanges": [said]}
    chatting.put("/chat/conversation", content='{"exchanges": []}')


def test_without_an_engine_it_says_so(client: TestClient) -> None:
    turns = [{"role": "user", "text": "x"}]
    answer = client.post("/chat/answers", content=json.dumps({"side": "base", "turns": turns}))
    assert answer.status_code == 409
    assert "load one first" in answer.json()["error"]
    assert phase(client)["phase"] == "none"


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU of 16,000 MiB, 3,000 of them free."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Test Card, 16000, 3000, 8.0, 570.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("studio.web.pages.chat.DEVICES._asked", -100.0)


@pytest.mark.usefixtures("card")
def test_it_refuses_with_figures_while_a_training_holds_the_card(client: TestClient, studio: Studio) -> None:
    tuned_run(studio.workspace.folder, "words")
    training = studio.jobs.submit(
        python("import time; print('up', flush=True); time.sleep(60)", studio.workspace.folder, gpus=(0,), title="cats")
    )
    printed(training, "up")
    refused = client.post("/chat/engine", data={"source": SOURCE, "device": "0"})
    assert refused.status_code == 409
    said = refused.json()["error"]
    assert all(part in said for part in ("cats", "Test Card", "2.9 of 15.6 GiB", "shapes-vl needs about 1.5 GiB")), said
    assert studio.jobs.list("chat") == []
    studio.jobs.stop(training.id)
    finished(studio.jobs, training)


def test_unloading_ends_every_process_of_the_engine(client: TestClient, studio: Studio) -> None:
    tuned_run(studio.workspace.folder, "words")
    client.post("/chat/engine", data={"source": SOURCE})
    job = studio.jobs.list("chat")[0]
    until("the engine is ready", lambda: phase(client)["phase"] == "ready")
    command = processes_of(job.folder)[1]
    assert command is not None
    family = [psutil.Process(command.pid), *psutil.Process(command.pid).children(recursive=True)]
    assert len(family) > 1
    client.post("/chat/engine/unload")
    assert finished(studio.jobs, job).state == "done"  # `lensmith serve` answers a stop with 0
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert phase(client)["phase"] == "stopped"


def test_a_crash_in_the_middle_is_a_sentence_with_the_last_lines(client: TestClient, studio: Studio) -> None:
    tuned_run(studio.workspace.folder, "words")
    client.post("/chat/engine", data={"source": SOURCE})
    job = studio.jobs.list("chat")[0]
    until("the engine is ready", lambda: phase(client)["phase"] == "ready")
    command = processes_of(job.folder)[1]
    assert command is not None
    os.kill(command.pid, signal.SIGKILL)
    assert finished(studio.jobs, job).state == "failed"
    page = client.get("/chat").text
    assert "ended by itself" in page
    assert "is ready after" in page  # of the last lines
    assert phase(client)["phase"] == "failed"


def test_a_model_that_cannot_be_loaded_is_the_engines_own_sentence(client: TestClient, studio: Studio) -> None:
    folder = studio.workspace.path("models", "broken")
    shutil.copytree(SHAPES_VL, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    client.post("/chat/engine", data={"source": "model:models/broken"})
    assert finished(studio.jobs, studio.jobs.list("chat")[0]).state == "failed"
    state = phase(client)
    assert state["phase"] == "failed"
    assert "the weights lack 1 tensor," in state["message"]
    assert "ended by itself" in client.get("/chat").text


def test_a_folder_that_is_no_model_is_refused_before_anything_starts(client: TestClient, studio: Studio) -> None:
    for path in ("/nowhere", "owner/none", "\0"):
        refused = client.post("/chat/engine", data={"path": path})
        assert refused.status_code == 404, path
        assert "no model folder" in refused.json()["error"]
    assert client.post("/chat/engine", data={"path": "../.."}).status_code == 400  # a folder, but of no model
    assert studio.jobs.list() == []
