"""Series whose labels are known exist from the start, and every refusal is counted and logged."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.gateway.processes import Process, fake_engine, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask, envelope


@pytest.fixture
def served() -> Iterator[tuple[Process, Process]]:
    with fake_engine() as engine, lensmith_serve("--engine", engine.url) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway, engine


def test_counters_and_histograms_begin_at_0(served: tuple[Process, Process]) -> None:
    gateway, engine = served
    lines = httpx.get(gateway.url + "/metrics").text.splitlines()
    for series in (
        'lensmith_requests_total{model="fake",status="500"} 0.0',
        'lensmith_rejections_total{reason="queue_full"} 0.0',
        'lensmith_generation_tokens_total{model="fake"} 0.0',
        'lensmith_time_to_first_token_seconds_count{model="fake"} 0.0',
        f'lensmith_upstream_requests_total{{engine="127.0.0.1:{engine.port}",outcome="engine_timeout"}} 0.0',
    ):
        assert series in lines


def test_what_a_draining_gateway_refuses_is_counted_and_logged(served: tuple[Process, Process]) -> None:
    gateway, _ = served
    with ThreadPoolExecutor() as pool:
        body = {"model": "fake", "messages": ask("slow 3")}
        slow = pool.submit(httpx.post, gateway.url + CHAT, json=body, timeout=30)
        until("it runs", lambda: gateway.metric("lensmith_requests_running", model="fake") == 1)
        gateway.process.send_signal(signal.SIGTERM)
        gateway.wait_until("/ready", 503)
        headers = {"x-request-id": "late-1"}
        refused = httpx.post(gateway.url + CHAT, json={"model": "fake", "messages": ask("hi")}, headers=headers)
        assert envelope(refused, 503)["code"] == "shutdown"
        assert gateway.metric("lensmith_rejections_total", reason="shutdown") == 1
        assert slow.result().status_code == 200
    lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{")]
    line = next(line for line in lines if line["request_id"] == "late-1")
    assert (line["status"], line["outcome"]) == (503, "shutdown")
