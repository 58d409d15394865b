"""The page Runs: what is going on, how runs ended and what to do, resume and stop, comparison, notes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.jobs.job import processes_of
from studio.runs.run import find_run
from studio.web.render import Studio
from tests.support.studio.jobs import SLEEP, finished, printed
from tests.support.studio.run_folders import add_checkpoint, make_run, record, train_job


def page(client: TestClient, path: str) -> str:
    answer = client.get(f"/{path}", headers={"accept": "text/html"})
    assert answer.status_code == 200, answer.text
    return answer.text


def events(client: TestClient, path: str, **headers: str) -> list[tuple[str, str, str]]:
    """All events of a stream that ends: (name, id, data)."""
    found = []
    for block in client.get(f"/{path}", headers=headers).text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines())
        if "event" in fields:
            found.append((fields["event"], fields.get("id", ""), fields.get("data", "")))
    return found


def test_without_runs_the_page_says_where_to_begin(client: TestClient) -> None:
    assert "Nothing has been trained here yet." in page(client, "runs")


def test_a_run_shows_its_figures_and_its_recipe(client: TestClient, studio: Studio) -> None:
    make_run(studio.workspace, "shapes", steps=60, total=100)
    text = page(client, "runs/shapes")
    assert "60 / 100" in text
    assert "learning_rate" in text
    assert find_run(studio.workspace, studio.jobs, "shapes").last("eval_loss") == pytest.approx(0.7463, abs=1e-3)


def test_the_time_left_follows_the_speed_so_far(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes", steps=60, total=100)  # a second a step
    job = train_job(studio.jobs, folder, SLEEP)
    assert find_run(studio.workspace, studio.jobs, "shapes").seconds_left == pytest.approx(40)
    assert "0:40" in page(client, "runs/shapes/live")
    studio.jobs.stop(job.id)
    finished(studio.jobs, job)


def test_the_curve_is_followed_and_goes_on_where_a_reader_stopped(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes", steps=60)
    (name, end, data), last = events(client, "runs/shapes/records")
    lines = json.loads(data)
    assert name == "lines"
    assert len(lines) == 33
    assert last[0] == "end"
    log = folder / "output" / "trainer_log.jsonl"
    assert int(end) == log.stat().st_size
    with log.open("a") as file:
        file.write(
            record(62, 100) + record(64, 100)[:20]
        )  # a line that is half written is not shown while it may go on
    (_, _, data), _, _ = events(client, "runs/shapes/records", **{"last-event-id": end})
    assert [json.loads(line)["current_steps"] for line in json.loads(data)] == [62]


def test_a_log_that_became_shorter_is_read_from_its_beginning(client: TestClient, studio: Studio) -> None:
    make_run(studio.workspace, "shapes", steps=4)
    found = events(client, "runs/shapes/records", **{"last-event-id": "99999"})
    assert [name for name, _, _ in found] == ["reset", "lines", "end"]


def test_the_output_is_followed(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes")
    finished(studio.jobs, train_job(studio.jobs, folder, "print('x' * 2_000_000); print('<b>the end</b>')"))
    found = events(client, "runs/shapes/log")
    assert found[-1][0] == "end"
    assert json.loads(found[-2][2])[-1] == "<b>the end</b>"
    assert client.get("/runs/shapes/output.log").text.endswith("<b>the end</b>\n")


ENDINGS = [
    ("print('Error: dataset: shapes is not in dataset_info.json.'); exit(1)", "dataset: shapes is not in"),
    ("print('OSError: [Errno 28] No space left on device'); exit(1)", "The disk is full."),
    ("print('torch.OutOfMemoryError: CUDA out of memory. Tried to'); exit(1)", "The GPU&#39;s memory was not enough."),
    ("print('Error: The GPU is out of memory; it should fit with a=1.'); exit(1)", "it should fit with a=1."),
    ("import nothing_like_this", "The Python module nothing_like_this is missing."),
    ("raise ValueError('of no known kind')", "ValueError: of no known kind"),
    ("exit(7)", "It ended with exit code 7."),
    ("import os; os.kill(os.getpid(), 9)", "The kernel does that when the machine&#39;s memory is full."),
    ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
    ("print('MemoryError'); exit(1)", "The machine&#39;s memory was not enough."),
]


@pytest.mark.parametrize(("code", "sentence"), ENDINGS, ids=[sentence[:20] for _, sentence in ENDINGS])
def test_a_failed_run_stays_with_a_sentence_its_last_lines_and_whether_it_goes_on(
    client: TestClient, studio: Studio, code: str, sentence: str
) -> None:
    folder = make_run(studio.workspace, "shapes")
    job = finished(studio.jobs, train_job(studio.jobs, folder, f"print('a line before', flush=True); {code}"))
    assert job.state == "failed"
    text = page(client, "runs/shapes")
    assert sentence in text
    assert "a line before" in text
    assert "It cannot be resumed: it ended before its first checkpoint." in text
    assert 'class="state failed"' in page(client, "runs")


def test_a_run_whose_wrapper_was_killed_is_never_done(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes")
    job = train_job(studio.jobs, folder, SLEEP)
    printed(job, "up")
    wrapper, _ = processes_of(job.folder)
    assert wrapper is not None
    os.kill(wrapper.pid, signal.SIGKILL)
    finished(studio.jobs, job)
    assert "was killed, or the machine was restarted" in page(client, "runs/shapes")
    assert 'class="state lost"' in page(client, "runs")


def test_a_run_that_is_quiet_for_long_is_pointed_out(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes")
    job = train_job(studio.jobs, folder, SLEEP)
    printed(job, "up")
    assert "No sign of life" not in page(client, "runs/shapes/live")
    long_ago = time.time() - 3600
    os.utime(job.log_path, (long_ago, long_ago))
    started = job.folder / "process.json"
    started.write_text(json.dumps(json.loads(started.read_text()) | {"started_at": long_ago}))
    assert "No sign of life for 1:00:0" in page(client, "runs/shapes/live")
    studio.jobs.stop(job.id)
    finished(studio.jobs, job)


def test_stop_and_resume_from_the_newest_whole_checkpoint(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes")
    job = train_job(studio.jobs, folder, "import sys; print(*sys.argv[1:]);" + SLEEP)
    printed(job, "up")
    answer = client.post("/runs/shapes/stop", headers={"hx-request": "true"})
    assert answer.headers["hx-redirect"] == "runs/shapes"
    assert finished(studio.jobs, job).state == "stopped"
    assert "Stopped at step 60 of 100." in page(client, "runs/shapes")
    add_checkpoint(folder, 20)
    whole = add_checkpoint(folder, 40)
    cut = add_checkpoint(folder, 60) / "state.pt"
    cut.write_bytes(cut.read_bytes()[:-30])
    assert "Resume from step 40" in page(client, "runs/shapes")
    assert client.post("/runs/shapes/resume", follow_redirects=False).status_code == 303
    again = studio.jobs.list("train", run="shapes")[0]
    printed(again, f"resume_from_checkpoint={whole}")
    second = client.post("/runs/shapes/resume", headers={"accept": "application/json"})
    assert second.status_code == 409
    assert second.json() == {"error": "It runs already."}
    studio.jobs.stop(again.id)
    finished(studio.jobs, again)
    client.post("/runs/shapes/resume")
    third = studio.jobs.list("train", run="shapes")[0]
    assert sum(part.startswith("resume_from_checkpoint=") for part in third.spec.command) == 1
    studio.jobs.stop(third.id)
    finished(studio.jobs, third)


def test_a_checkpoint_whose_weights_were_cut_is_not_offered(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes")
    weights = add_checkpoint(folder, 20) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "none of its checkpoints is whole" in page(client, "runs/shapes")


def test_a_finished_run_is_not_resumed(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes")
    add_checkpoint(folder, 60)
    finished(studio.jobs, train_job(studio.jobs, folder, ""))
    assert "Finished after 60 steps." in page(client, "runs/shapes")
    assert client.post("/runs/shapes/resume", headers={"accept": "*/*"}).status_code == 409


def test_samples_show_how_the_answers_changed(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes")
    text = " ".join(page(client, "runs/shapes").split())
    assert '<span class="quiet">Step 0:</span> yes' in text
    assert '<span class="quiet">Step 20:</span> red' in text
    picture = client.get("/runs/shapes/samples/0/0")
    assert picture.headers["content-type"] == "image/jpeg"
    log = folder / "output/sample_answers.jsonl"
    shutil.copy(
        json.loads(log.read_text().splitlines()[0])["answers"][0]["images"][0], studio.workspace.folder / "a.png"
    )
    answer = {"images": ["runs/../a.png"], "question": "?", "label": "red", "answer": "red"}
    log.write_text(json.dumps({"step": 0, "answers": [answer]}) + "\n")  # as training writes it, from the workspace
    assert client.get("/runs/shapes/samples/0/0").content == picture.content
    for wrong in ("5/0", "0/7", "-1/0"):
        assert client.get(f"/runs/shapes/samples/{wrong}").status_code in (400, 404)


def test_what_models_and_rows_say_is_text_and_never_html(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes", dataset="<script>alert(1)</script>")
    answer = {
        "images": [],
        "question": "<img src=x onerror=alert(2)>",
        "label": "</p><script>",
        "answer": "<b>bold</b>",
    }
    (folder / "output" / "sample_answers.jsonl").write_text(json.dumps({"step": 0, "answers": [answer]}) + "\n")
    client.put("/runs/shapes/notes", data={"notes": "</textarea><script>alert(3)</script>"})
    text = page(client, "runs/shapes")
    for hostile in ("<script>alert", "<img src=x", "<b>bold", "</textarea><script>"):
        assert hostile not in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text


def test_notes_are_kept(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes")
    assert "Saved." in client.put("/runs/shapes/notes", data={"notes": "a higher rank, 更高的秩"}).text
    assert (folder / "notes.md").read_text() == "a higher rank, 更高的秩"
    assert "a higher rank, 更高的秩" in page(client, "runs/shapes")


def test_runs_are_compared_by_what_differs_in_their_recipes(client: TestClient, studio: Studio) -> None:
    make_run(studio.workspace, "one", lora_rank=8)
    make_run(studio.workspace, "two", lora_rank=64, seed=7)
    text = page(client, "runs/compare?run=one&run=two")
    difference = text[text.index("What differs") :]
    assert all(part in difference for part in ("lora_rank", "<td>8</td>", "<td>64</td>", "seed", "unset"))
    assert "learning_rate" not in difference
    assert "output_dir" not in difference
    assert client.get("/runs/compare", headers={"accept": "*/*"}).status_code == 400
    too_many = "&".join(f"run=r{number}" for number in range(7))
    assert client.get(f"/runs/compare?{too_many}", headers={"accept": "*/*"}).status_code == 400


@pytest.mark.parametrize("name", ["nothing", "%2e%2e%2fjobs", "a%2fb", "x%00"])
def test_a_run_that_is_not_there_is_not_found(client: TestClient, name: str) -> None:
    assert client.get(f"/runs/{name}", headers={"accept": "*/*"}).status_code in (400, 404)


def test_a_damaged_run_folder_is_shown_all_the_same(client: TestClient, studio: Studio) -> None:
    folder = make_run(studio.workspace, "shapes")
    (folder / "recipe.yaml").write_text("a: [")
    (folder / "output" / "train_results.json").write_text("{")
    (folder / "output" / "trainer_log.jsonl").write_bytes(b"\x00\xff not json\n[1]\n")
    (folder / "output" / "sample_answers.jsonl").write_text('{"step": 1}\n{"half')
    assert "shapes" in page(client, "runs/shapes")
    assert "shapes" in page(client, "runs")


def test_an_empty_folder_of_a_run_is_shown(client: TestClient, studio: Studio) -> None:
    Path(studio.workspace.create("runs", "bare"))
    assert "No steps have been logged yet." in page(client, "runs/bare")
