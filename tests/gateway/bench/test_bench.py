"""`lensmith bench` as users run it, against an engine whose answers are known."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gateway.bench.cli import bench
from gateway.bench.client import OK, RequestRecord, ask
from gateway.bench.figures import figures, percentile
from gateway.bench.load import LevelResult, LoadLevel, arrivals
from gateway.bench.request_set import RequestSet
from tests.support.gateway.processes import Process, fake_engine, until
from tests.support.paths import ROOT


def command(url: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "lensmith", "bench", url, "--images", "0", *options]


def run(url: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = command(url, *options)
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


def report_of(tmp_path: Path, url: str, *options: str, **environment: str) -> dict:
    done = run(url, "--json", str(tmp_path / "report.json"), *options, **environment)
    assert (tmp_path / "report.json").exists(), done.stderr
    return json.loads((tmp_path / "report.json").read_text())


def test_a_ramp_counts_every_answer_once(engine: Process, tmp_path: Path) -> None:
    before = httpx.get(engine.url + "/stats").json()["finished"]
    report = report_of(
        tmp_path,
        engine.url + "/v1",
        *("--concurrency", "1,6", "--requests", "20", "--warmup", "3", "--processes", "3"),
        *("--prompt", "count 5", "--goodput", "e2e:60000", "--goodput", "ttft:0.001", "--png", str(tmp_path / "b.png")),
    )
    assert [level["concurrency"] for level in report["levels"]] == [1, 6]
    for level in report["levels"]:
        assert (level["requests"], level["ok"], level["errors"]) == (20, 20, {})
        assert level["tokens_per_answer"] == 5
        assert level["goodput_per_second"] == 0
        assert level["tokens_per_second"] == pytest.approx(5 * level["requests_per_second"], rel=0.01)
        assert level["ttft_ms"]["p50"] <= level["e2e_ms"]["p50"] <= level["e2e_ms"]["max"]
    assert httpx.get(engine.url + "/stats").json()["finished"] - before == 2 * (20 + 3)
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.format == "PNG"


def test_so_many_are_at_work_at_once(engine: Process) -> None:
    options = ("--concurrency", "5", "--warmup", "0", "--requests", "5", "--prompt", "count 1000 0.05")
    with subprocess.Popen(command(engine.url, *options), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        until("five answers run", lambda: httpx.get(engine.url + "/stats").json()["running"] == 5)
        process.terminate()
    until("they were aborted", lambda: httpx.get(engine.url + "/stats").json()["running"] == 0)


def test_an_open_loop_does_not_wait_for_answers(engine: Process) -> None:
    options = ("--rate", "50", "--warmup", "0", "--requests", "8", "--prompt", "count 1000 0.05", "--processes", "2")
    with subprocess.Popen(command(engine.url, *options), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        until("all have begun", lambda: httpx.get(engine.url + "/stats").json()["running"] == 8)
        process.terminate()
    until("they were aborted", lambda: httpx.get(engine.url + "/stats").json()["running"] == 0)


@pytest.mark.parametrize(
    ("prompt", "stream", "outcome", "text_began"),
    [
        ("fault status 429", True, "429", False),
        ("fault html 502", True, "502", False),
        ("fault reset", True, "broken connection", False),
        ("fault mid-reset", True, "broken connection", True),
        ("fault mid-end", True, "stream cut short", True),
        ("fault mid-event", True, "error in the stream", True),
        ("fault first-event", True, "error in the stream", False),
        ("fault flat200", False, "not OpenAI's format", False),
        ("fault hang", True, "timeout", False),
    ],
)
def test_failures_are_told_apart(engine: Process, prompt: str, stream: bool, outcome: str, text_began: bool) -> None:
    async def once() -> RequestRecord:
        timeout = aiohttp.ClientTimeout(total=0.5 if outcome == "timeout" else 30)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            body = RequestSet(model="fake", prompt=prompt, max_tokens=1, stream=stream).body(0)
            return await ask(session, engine.url + "/v1/chat/completions", body, time.monotonic())

    record = asyncio.run(once())
    assert (record.outcome, record.first is not None) == (outcome, text_began)


def test_a_run_without_any_answer_fails_and_says_why(engine: Process) -> None:
    done = run(engine.url, "--concurrency", "2", "--requests", "3", "--warmup", "0", "--prompt", "fault status 429")
    assert done.returncode == 1
    assert "3 x 429" in done.stderr
    assert "No request was answered." in done.stderr


def test_the_key_comes_from_the_environment(tmp_path: Path) -> None:
    options = ("--concurrency", "1", "--requests", "2", "--warmup", "0", "--model", "fake", "--no-stream")
    with fake_engine(LENSMITH_ENGINE_KEY="secret") as engine:
        assert report_of(tmp_path, engine.url, *options)["levels"][0]["errors"] == {"401": 2}
        assert report_of(tmp_path, engine.url, *options, LENSMITH_API_KEY="secret")["levels"][0]["ok"] == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--concurrency", "1,x"], "'1,x' is not a list of numbers"),
        (["--concurrency", "0"], "above 0"),
        (["--concurrency", "1", "--rate", "1"], "not both"),
        (["--goodput", "tpot:5"], "'tpot:5' is not a target such as ttft:500"),
        (["--image-size", "768"], "'768' is not a size such as 768x768"),
        (["--extra", "[]"], "must be a JSON object"),
        (["--json", "/nowhere/x.json"], "The folder of /nowhere/x.json does not exist."),
        ([], "There is nothing to measure: nothing answers at http://127.0.0.1:9"),
    ],
)
def test_a_mistake_is_one_sentence(options: list[str], sentence: str) -> None:
    done = CliRunner().invoke(bench, ["http://127.0.0.1:9", *options])
    assert done.exit_code in (1, 2)
    assert sentence in " ".join(done.output.split())
    assert isinstance(done.exception, SystemExit)


def test_an_address_that_is_none_is_one_sentence() -> None:
    done = CliRunner().invoke(bench, ["localhost:8000"])
    assert done.exit_code == 2
    assert "localhost:8000 is not the address of an engine" in done.output


def picture_of(body: bytes) -> Image.Image:
    url = json.loads(body)["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_drawn_images_have_the_size_and_are_all_different() -> None:
    request_set = RequestSet(model="m", prompt="?", max_tokens=1, images=1, image_size=(120, 90), prompt_words=4)
    pictures = [picture_of(request_set.body(seed)) for seed in range(20)]
    assert {picture.size for picture in pictures} == {(120, 90)}
    assert len({picture.tobytes() for picture in pictures}) == 20
    assert request_set.body(7) == request_set.body(7)


def test_a_folders_images_are_sent_as_they_are(tmp_path: Path) -> None:
    files = []
    for side, name in ((10, "a.png"), (11, "b.jpg")):
        Image.new("RGB", (side, side)).save(tmp_path / name)
        files.append(tmp_path / name)
    request_set = RequestSet(model="m", prompt="?", max_tokens=1, images=1, image_files=tuple(files))
    assert [picture_of(request_set.body(seed)).size[0] for seed in range(4)] == [10, 11, 10, 11]


@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.sampled_from([50, 90, 99]))
def test_a_percentile_is_the_least_value_that_covers_its_share(values: Sequence[float], share: int) -> None:
    found = percentile(sorted(values), share)
    assert sum(value <= found for value in values) >= share / 100 * len(values)
    assert sum(value < found for value in values) < share / 100 * len(values)


def test_rates_and_goodput_of_known_records() -> None:
    records = [RequestRecord(OK, at, at + 1.0, at + 0.1 * (at + 1), (0.02, 0.04), 3, 10) for at in (0.0, 1.0, 2.0)]
    records.append(RequestRecord("503", 3.0, 4.0))
    row = figures(LoadLevel(4, 0, 1), LevelResult(records, 0.1, 4), {"ttft": 250, "itl": 30})
    assert (row["seconds"], row["requests_per_second"], row["tokens_per_second"]) == (4, 0.75, 2.25)
    assert row["goodput_per_second"] == 0.5
    assert (row["ttft_ms"]["p50"], row["ttft_ms"]["p99"], row["itl_ms"]["mean"]) == (200, 300, 30)
    assert (row["errors"], row["failed_before_text"]) == ({"503": 1}, 1)


def test_the_shares_of_a_level_are_the_whole_and_arrivals_keep_the_rate() -> None:
    level = LoadLevel(requests=103, warmup=7, concurrency=10, rate=20.0, seed=random.Random(1).randrange(10**9))
    shares = [level.share(index, 4) for index in range(4)]
    assert sum(share.requests for share in shares) == 103
    assert sum(share.warmup for share in shares) == 7
    assert sum(share.concurrency for share in shares) == 10
    assert len({share.seed for share in shares}) == 4
    times = list(arrivals(LoadLevel(requests=4000, warmup=0, rate=20.0), 100.0))
    assert times == sorted(times)
    assert times[0] > 100
    assert times[-1] - 100 == pytest.approx(200, rel=0.1)
