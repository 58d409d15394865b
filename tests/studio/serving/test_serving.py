"""The page Serve: exports with the disk looked at, verdicts, gateways with their figures, programs that ask them."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from studio.serving import gateways
from studio.serving.gateways import read_figures
from studio.web.render import Studio
from tests.support.gateway.processes import until
from tests.support.gateway.requests import picture
from tests.support.modelfiles.fake_ollama import running
from tests.support.modelfiles.model_folders import make_folder
from tests.support.paths import SHAPES_VL
from tests.support.studio.data import shape_files
from tests.support.studio.datasets import imported
from tests.support.studio.jobs import SLEEP, finished, printed, python
from tests.support.studio.tuned_run import WORD, tuned_run

SOURCE = "run:words"
MODEL = f"model:{SHAPES_VL}"


@pytest.fixture(autouse=True)
def run(studio: Studio) -> Path:
    return tuned_run(studio.workspace.folder, "words")


def ask(url: str, model: str, key: str = "") -> httpx.Response:
    content = [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": "What is this?"}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_an_export_is_a_model_that_can_be_served_and_is_listed(client: TestClient, studio: Studio) -> None:
    assert client.post("/serve/exports", data={"source": SOURCE, "name": "merged"}).status_code == 200
    job = finished(studio.jobs, studio.jobs.list("export")[0])
    assert job.state == "done", job.tail()[0]
    assert (studio.workspace.path("models", "merged") / "lensmith.json").is_file()
    assert 'value="model:models/merged"' in client.get("/serve").text
    again = client.post("/serve/exports", data={"source": SOURCE, "name": "merged"})
    assert again.status_code == 409
    assert "There is a “merged” already" in again.json()["error"]


def test_an_export_that_the_disk_cannot_hold_is_refused_with_figures(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**30, 2**30, 0))
    refused = client.post("/serve/exports", data={"source": SOURCE})
    assert refused.status_code == 507
    assert re.search(r"needs \d+\.\d GiB, but only 0\.0 GiB are free", refused.json()["error"])
    assert studio.jobs.list() == []


@pytest.mark.parametrize("name", ["../out", "a/b", "x" * 65, ".hidden", "<script>"])
def test_names_that_are_none_are_refused_before_anything_starts(client: TestClient, studio: Studio, name: str) -> None:
    for path, source in (("exports", SOURCE), ("gateways", SOURCE), ("ollama", MODEL)):
        assert client.post(f"/serve/{path}", data={"source": source, "name": name}).status_code == 400
    assert studio.jobs.list() == []


def test_a_gateway_is_started_watched_and_stopped(client: TestClient, studio: Studio) -> None:
    page = client.post("/serve/gateways", data={"source": SOURCE, "name": "shapes"})
    assert page.status_code == 200
    job = studio.jobs.list("gateway")[0]
    until("it is ready", lambda: client.get(f"/serve/gateways/{job.id}/now").json()["phase"] == "ready")
    url = f"http://127.0.0.1:{job.spec.about['port']}"
    assert f"{url}/v1" in page.text
    assert ask(url, "tuned").json()["choices"][0]["message"]["content"].split() == [WORD] * 4
    assert WORD not in ask(url, "shapes").json()["choices"][0]["message"]["content"]
    figures = client.get(f"/serve/gateways/{job.id}/now").json()["figures"]
    assert (figures["requests"], figures["errors"], figures["running"]) == (2, 0, 0)
    assert figures["tokens"] >= 5
    seen = client.get(f"/serve/gateways/{job.id}/now", params={"history": True}).json()["history"]
    assert seen[-1]["requests"] == 2, "a page that is opened later draws what was seen before"
    assert seen[0]["at"] <= seen[-1]["at"]
    taken = client.post("/serve/gateways", data={"source": MODEL, "port": str(job.spec.about["port"])})
    assert taken.status_code == 409
    assert "choose another one" in taken.json()["error"]
    assert client.post("/serve/gateways", data={"source": SOURCE, "name": "shapes"}).status_code == 409
    assert len(studio.jobs.list("gateway")) == 1

    program = html.unescape(re.search(r'data-program="python"[^>]*>(.*?)</pre>', page.text, re.DOTALL)[1])  # type: ignore[index]
    folder = studio.workspace.folder
    Image.new("RGB", (40, 30), "red").save(folder / "picture.jpg")
    told = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[0] == WORD

    client.post(f"/serve/jobs/{job.id}/stop")
    assert finished(studio.jobs, job).state == "done"
    assert client.get(f"/serve/gateways/{job.id}/now").json()["phase"] == "stopped"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_gateway_for_other_machines_asks_for_the_key_that_its_page_shows(client: TestClient, studio: Studio) -> None:
    page = client.post("/serve/gateways", data={"source": MODEL, "name": "open", "everywhere": "on"}).text
    job = studio.jobs.list("gateway")[0]
    key = re.search(r"sk-lensmith-[\w-]+", page)
    assert key is not None
    until("it is ready", lambda: client.get(f"/serve/gateways/{job.id}/now").json()["phase"] == "ready")
    url = f"http://127.0.0.1:{job.spec.about['port']}"
    assert ask(url, "open").status_code == 401
    assert ask(url, "open", key[0]).status_code == 200
    assert client.get(f"/serve/gateways/{job.id}/now").json()["figures"]["requests"] >= 1
    assert (studio.workspace.path("gateways", "open") / "key.txt").stat().st_mode & 0o077 == 0
    assert key[0] not in " ".join(job.spec.command)
    client.post(f"/serve/jobs/{job.id}/stop")
    finished(studio.jobs, job)


def test_what_servers_make_of_a_model_and_what_fits_a_card(client: TestClient) -> None:
    told = html.unescape(client.get("/serve/checks", params={"source": MODEL, "card": "t4"}).text)
    for server in ("LMDeploy", "Ollama", "llama.cpp"):
        assert server in told
    assert "LMDeploy on the T4" in told
    assert "max-batch-size" in told
    without = client.get("/serve/checks", params={"source": MODEL, "card": "nonsense"}).text
    assert "is neither a card" in without


def test_a_model_is_installed_in_ollama_by_a_job(client: TestClient, studio: Studio) -> None:
    refused = client.post("/serve/ollama", data={"source": SOURCE})
    assert refused.status_code == 400
    assert "must be exported first" in refused.json()["error"]
    with running() as ollama:
        client.post("/serve/ollama", data={"source": MODEL, "name": "shapes", "server": ollama.url})
        job = finished(studio.jobs, studio.jobs.list("ollama")[0])
    assert "vocab.json" in job.tail()[0]  # it reached the server's uploads; this fake one knows no model "shapes"
    gone = client.post("/serve/ollama", data={"source": MODEL, "name": "gone", "server": "http://127.0.0.1:1"})
    assert gone.status_code == 200
    job = finished(studio.jobs, studio.jobs.list("ollama")[0])
    assert job.state == "failed"
    assert "127.0.0.1:1" in html.unescape(client.get("/serve/jobs").text)


def test_an_installation_that_proves_itself_is_done(client: TestClient, studio: Studio) -> None:
    make_folder(studio.workspace.path("models", "shown"), min_pixels=1024 * 32 * 32)
    with running() as ollama:
        ollama.show_qwen3vl()
        form = {"source": "model:models/shown", "name": "api-ok", "server": ollama.url}
        assert client.post("/serve/ollama", data=form).status_code == 200
        job = finished(studio.jobs, studio.jobs.list("ollama")[0])
    assert job.state == "done", job.tail()[0]
    assert re.search(r"api-ok is installed, \d+ checks passed", job.tail()[0])
    told = html.unescape(client.get("/serve/jobs").text)
    assert "api-ok" in told
    assert "done" in told


def test_a_name_that_ollama_does_not_take_is_a_sentence_with_one_that_it_takes(
    client: TestClient, studio: Studio
) -> None:
    refused = client.post("/serve/ollama", data={"source": MODEL, "name": "形状-v1"})
    assert refused.status_code == 400
    assert "such as “v1”" in refused.json()["error"]
    assert studio.jobs.list() == []


def test_an_installation_measures_the_answers_there_and_here(client: TestClient, studio: Studio) -> None:
    imported(client, shape_files())
    assert '<option value="mine@1">' in client.get("/serve").text
    with running() as ollama:
        ollama.answers = {}
        client.post("/serve/ollama", data={"source": MODEL, "name": "api-ok", "server": ollama.url, "data": "mine@1"})
        job = finished(studio.jobs, studio.jobs.list("ollama")[0])
    assert re.search(r"answers are as good: \d+ of \d+ right in Ollama, \d+ through the gateway", job.tail()[0]), (
        job.tail()[0]
    )
    assert job.state == "failed", "the stand-in is not this model"
    wrong = client.post("/serve/ollama", data={"source": MODEL, "name": "other", "data": "gone@1"})
    assert wrong.status_code == 404


def test_figures_are_sums_over_models_and_statuses() -> None:
    text = """# TYPE lensmith_requests_total counter
lensmith_requests_total{model="a",status="200"} 3.0
lensmith_requests_total{model="b",status="500"} 2.0
# TYPE lensmith_requests_waiting gauge
lensmith_requests_waiting{model="a"} 4.0
# TYPE lensmith_time_to_first_token_seconds histogram
lensmith_time_to_first_token_seconds_bucket{le="+Inf",model="a"} 2.0
lensmith_time_to_first_token_seconds_sum{model="a"} 0.5
lensmith_time_to_first_token_seconds_count{model="a"} 2.0
"""
    figures = read_figures(text)
    assert (figures.requests, figures.errors, figures.waiting) == (5, 2, 4)
    assert (figures.first_sum, figures.first_count) == (0.5, 2)


def test_the_figures_that_are_kept_do_not_grow_without_end(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "POINTS", 5)
    job = finished(studio.jobs, studio.jobs.submit(python("", tmp_path)))
    for requests in range(40):
        gateways.note(job, gateways.Figures(requests=requests))
    assert [point["requests"] for point in gateways.history_of(job)] == [35, 36, 37, 38, 39]
    assert len((job.folder / "figures.jsonl").read_text().splitlines()) <= 11


def test_other_jobs_are_not_stopped_by_this_page(client: TestClient, studio: Studio) -> None:
    job = studio.jobs.submit(python(SLEEP, studio.workspace.folder))
    printed(job, "up")
    assert client.post(f"/serve/jobs/{job.id}/stop").status_code == 404
    assert client.get(f"/serve/gateways/{job.id}").status_code == 404
    assert studio.jobs.get(job.id).active
    studio.jobs.stop(job.id)
    finished(studio.jobs, job)
