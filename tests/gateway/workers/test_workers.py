"""`lensmith serve --workers 2`: several processes that are one gateway to everybody outside."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.gateway.processes import Process, fake_engine, lensmith_serve, until
from tests.support.gateway.requests import CHAT, envelope

SLOW = "count 1000 0.05"
WORKERS = 2


@pytest.fixture(scope="module")
def engine() -> Iterator[Process]:
    with fake_engine() as process:
        yield process


@contextmanager
def serving(engine: Process, *options: str) -> Iterator[Process]:
    with lensmith_serve("--engine", engine.url, "--workers", str(WORKERS), *options) as gateway:
        gateway.wait_until("/ready", 200)
        until("all serve", lambda: sum(process.is_running() for process in workers(gateway)) == WORKERS)
        until("all are told of", lambda: gateway.log().count("lensmith: Gateway process ") == WORKERS)
        yield gateway


def workers(gateway: Process) -> list[psutil.Process]:
    found = psutil.Process(gateway.process.pid).children()
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def body(text: str, **more: object) -> dict[str, object]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **more}


def ask(gateway: Process, text: str = "hi", **more: object) -> httpx.Response:
    """On a connection of its own, so that the kernel chooses the worker."""
    return httpx.post(gateway.url + CHAT, json=body(text), timeout=60, **more)  # type: ignore[arg-type]


def streams(gateway: Process, stack: ExitStack, count: int) -> list[httpx.Response]:
    """So many answers that go on, each on a connection of its own, once all have begun."""
    found = []
    for _ in range(count):
        client = stack.enter_context(httpx.Client(timeout=60))
        found.append(
            stack.enter_context(client.stream("POST", gateway.url + CHAT, json=body(SLOW, stream=True, max_tokens=900)))
        )
        assert found[-1].status_code == 200
    return found


def answering(gateway: Process) -> dict[int, int]:
    """Connections that each worker has, by its pid."""
    return {
        process.pid: sum(c.laddr.port == gateway.port and c.status == "ESTABLISHED" for c in process.net_connections())
        for process in workers(gateway)
    }


def test_requests_are_spread_and_counted_as_by_one(engine: Process) -> None:
    with serving(engine) as gateway, ExitStack() as stack:
        names = ("lensmith_requests_total", "lensmith_generation_tokens_total")
        assert all(gateway.metric(name, model="fake") == 0 for name in names), "counters begin at 0"
        for _ in range(20):
            assert ask(gateway).status_code == 200
        assert gateway.metric("lensmith_requests_total", model="fake", status="200") == 20
        assert gateway.metric("lensmith_request_seconds_count", model="fake") == 20
        assert gateway.metric("lensmith_request_queue_seconds_count") == 20
        streams(gateway, stack, 12)
        assert all(answering(gateway).values()), "both have some"
        assert gateway.metric("lensmith_requests_running", model="fake") == 12
        assert gateway.metric("lensmith_upstream_running") == 12
        assert gateway.metric("lensmith_engine_up") == 1
        text = httpx.get(gateway.url + "/metrics").text
        helps = [line for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(helps) == len(set(helps)), "each family stands there once"
        assert gateway.metric("process_resident_memory_bytes") > 100e6, "of all processes"


def test_the_queue_and_the_places_are_those_of_all_workers(engine: Process) -> None:
    with serving(engine, "--max-running", "3", "--max-waiting", "2") as gateway, ExitStack() as stack:
        streams(gateway, stack, 3)

        async def more() -> list[int]:
            async def one() -> int:
                async with httpx.AsyncClient(timeout=60) as client:
                    try:
                        return (await client.post(gateway.url + CHAT, json=body("hi"), timeout=3)).status_code
                    except httpx.ReadTimeout:
                        return 0

            return await asyncio.gather(*(one() for _ in range(12)))

        statuses = asyncio.run(more())
        assert sorted(statuses) == [0, 0] + [503] * 10, "two wait, whichever worker they came to"
        until("nobody waits", lambda: gateway.metric("lensmith_requests_waiting") == 0)
        assert gateway.metric("lensmith_requests_running", model="fake") == 3


def test_a_place_that_becomes_free_at_one_worker_is_given_to_whoever_waits_at_another(engine: Process) -> None:
    with serving(engine, "--max-running", "1") as gateway:
        client = httpx.Client(timeout=60)
        with client.stream("POST", gateway.url + CHAT, json=body(SLOW, stream=True)) as held:
            assert held.status_code == 200

            async def wait_and_free() -> list[int]:
                async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as many:
                    asked = [asyncio.create_task(many.post(gateway.url + CHAT, json=body("hi"))) for _ in range(8)]
                    waiting = lambda: gateway.metric("lensmith_requests_waiting") == 8  # noqa: E731
                    await asyncio.to_thread(until, "8 wait", waiting)
                    await asyncio.to_thread(client.close)
                    return [(await task).status_code for task in asked]

            assert asyncio.run(wait_and_free()) == [200] * 8


def test_a_full_queue_is_known_to_all_before_they_look_at_an_image(engine: Process) -> None:
    options = ("--max-running", "1", "--max-waiting", "1")
    with serving(engine, *options) as gateway, ThreadPoolExecutor() as pool, ExitStack() as stack:
        streams(gateway, stack, 1)
        waiting = pool.submit(ask, gateway)
        until("it waits", lambda: gateway.metric("lensmith_requests_waiting") == 1)
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        broken = {"model": "fake", "messages": [{"role": "user", "content": [image]}]}

        def codes() -> set[str]:
            answers = [httpx.post(gateway.url + CHAT, json=broken, timeout=60) for _ in range(8)]
            return {answer.json()["error"]["code"] for answer in answers}

        until("all are told", lambda: codes() == {"queue_full"})
        stack.close()
        assert waiting.result().status_code == 200
        until("all are told", lambda: codes() == {"invalid_image"})


def test_who_waits_too_long_for_a_place_is_told_when_to_come_again(engine: Process) -> None:
    with serving(engine, "--max-running", "1") as gateway, ExitStack() as stack:
        streams(gateway, stack, 1)
        answer = ask(gateway, headers={"x-request-timeout": "0.5"})
        assert envelope(answer, 503)["code"] == "queue_timeout"
        assert int(answer.headers["retry-after"]) > 0
        until("nobody waits", lambda: gateway.metric("lensmith_requests_waiting") == 0)


def test_an_engine_that_breaks_off_is_an_error_of_its_own(engine: Process) -> None:
    with serving(engine) as gateway:
        assert envelope(ask(gateway, "fault reset"), 502)["message"] == "The engine broke off the connection."


def test_without_the_parent_all_end_and_who_waits_is_answered(engine: Process) -> None:
    with serving(engine, "--max-running", "1") as gateway, ThreadPoolExecutor() as pool, ExitStack() as stack:
        streams(gateway, stack, 1)
        waiting = pool.submit(ask, gateway)
        until("it waits", lambda: gateway.metric("lensmith_requests_waiting") == 1)
        orphans = workers(gateway)
        gateway.process.kill()
        assert envelope(waiting.result(), 503)["code"] == "shutdown"
        stack.close()
        until("all have ended", lambda: not any(process.is_running() for process in orphans))


def test_the_bytes_are_those_of_all_workers(engine: Process) -> None:
    large = "x" * 600_000
    with serving(engine, "--max-bytes-in-flight", "1000000") as gateway, ExitStack() as stack:
        held = body(SLOW, stream=True)
        held["messages"] = [{"role": "system", "content": large}, *held["messages"]]  # type: ignore[misc]
        client = stack.enter_context(httpx.Client(timeout=60))
        assert stack.enter_context(client.stream("POST", gateway.url + CHAT, json=held)).status_code == 200
        for _ in range(8):
            assert envelope(ask(gateway, large), 503)["code"] == "bytes_in_flight"
        assert ask(gateway).status_code == 200


def write_keys(path: Path, secret: str, **limits: int) -> Path:
    from gateway.tenants.keys import digest

    row = {"name": "alice", "sha256": digest(secret), "created": "2026-11-28", **limits}
    path.write_text(json.dumps({"keys": [row]}))
    return path


def test_a_keys_limits_hold_over_all_workers(engine: Process, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", "sk-alice", requests_per_minute=7)
    with serving(engine, "--keys", str(keys)) as gateway:
        headers = {"authorization": "Bearer sk-alice"}
        answers = [ask(gateway, headers=headers) for _ in range(12)]
        assert [answer.status_code for answer in answers] == [200] * 7 + [429] * 5
        left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]
        assert left == [6, 5, 4, 3, 2, 1, 0] + [0] * 5


def test_what_a_dead_worker_held_of_a_keys_limit_is_free_again(engine: Process, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", "sk-alice", concurrency=2)
    with serving(engine, "--keys", str(keys)) as gateway, ExitStack() as stack:
        headers = {"authorization": "Bearer sk-alice"}
        for _ in range(2):
            client = stack.enter_context(httpx.Client(timeout=60, headers=headers))
            answer = stack.enter_context(client.stream("POST", gateway.url + CHAT, json=body(SLOW, stream=True)))
            assert answer.status_code == 200
        assert {ask(gateway, headers=headers).status_code for _ in range(6)} == {429}
        for worker in workers(gateway):
            worker.kill()
        until("both again", lambda: gateway.log().count("lensmith: Gateway process ") == 2 * WORKERS)
        assert ask(gateway, headers=headers).status_code == 200


def test_a_worker_that_dies_loses_its_own_requests_only_and_none_of_its_figures(engine: Process) -> None:
    with serving(engine, "--max-running", "12") as gateway, ExitStack() as stack:
        for _ in range(10):
            assert ask(gateway).status_code == 200
        answers = streams(gateway, stack, 12)
        victim, held = max(answering(gateway).items(), key=lambda entry: entry[1])
        assert 0 < held < 12, "both have some"
        psutil.Process(victim).kill()
        until("the places are free", lambda: gateway.metric("lensmith_requests_running", model="fake") == 12 - held)
        ended = 0
        for answer in answers:
            lines, end = answer.iter_lines(), time.monotonic() + 2
            try:
                while time.monotonic() < end:  # what came before is read in less
                    next(lines)
            except (httpx.RemoteProtocolError, httpx.ReadError):
                ended += 1
        assert ended == held
        until("it is there again", lambda: len(workers(gateway)) == WORKERS)
        assert gateway.metric("lensmith_requests_total", model="fake", status="200") == 10
        assert gateway.metric("lensmith_worker_restarts_total") == 1
        assert all(ask(gateway).status_code == 200 for _ in range(10)), "who came to its socket meanwhile waits"
        assert gateway.metric("lensmith_requests_total", model="fake", status="200") == 20


def test_all_drain_together_and_the_port_is_answered_meanwhile(engine: Process) -> None:
    with serving(engine) as gateway, ExitStack() as stack:
        client = stack.enter_context(httpx.Client(timeout=60))
        request = body("count 60 0.05", stream=True, max_tokens=60)
        answer = stack.enter_context(client.stream("POST", gateway.url + CHAT, json=request))
        gateway.process.send_signal(signal.SIGTERM)
        until("not ready", lambda: httpx.get(gateway.url + "/ready").status_code == 503)
        for _ in range(8):
            assert envelope(ask(gateway), 503)["code"] == "shutdown"
        assert list(answer.iter_lines())[-2:] == ["data: [DONE]", ""]
        assert gateway.process.wait(20) == 0
        assert "Traceback" not in gateway.log()
        assert "is killed" not in gateway.log()


def test_the_second_signal_cuts_the_rest_short(engine: Process) -> None:
    with serving(engine) as gateway, ExitStack() as stack:
        (answer,) = streams(gateway, stack, 1)
        gateway.process.send_signal(signal.SIGINT)
        until("not ready", lambda: httpx.get(gateway.url + "/ready").status_code == 503)
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(20) == 0
        assert any('"code":"shutdown"' in line for line in answer.iter_lines())


def test_the_engine_is_started_once_and_readiness_follows_it() -> None:
    with fake_engine() as engine, serving(engine) as gateway:
        engine.process.send_signal(signal.SIGKILL)
        until("all say so", lambda: {httpx.get(gateway.url + "/ready").status_code for _ in range(10)} == {503})
        with fake_engine(port=engine.port):
            until("all say so", lambda: {httpx.get(gateway.url + "/ready").status_code for _ in range(10)} == {200})
            assert ask(gateway).status_code == 200


def test_a_configuration_that_changes_reaches_all(engine: Process, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    text = f"workers: 2\nmodels:\n  {{name}}:\n    replicas: [{{{{url: '{engine.url}', model: fake}}}}]\n"
    file.write_text(text.format(name="one"))
    with lensmith_serve("--config", str(file)) as gateway:
        gateway.wait_until("/ready", 200)
        file.write_text(text.format(name="two"))
        gateway.process.send_signal(signal.SIGHUP)
        listed = lambda: {httpx.get(gateway.url + "/v1/models").json()["data"][0]["id"] for _ in range(10)}  # noqa: E731
        until("all know", lambda: listed() == {"two"})
        request = {**body("hi"), "model": "two"}
        assert all(httpx.post(gateway.url + CHAT, json=request).status_code == 200 for _ in range(6))


def test_a_port_that_another_gateway_has_is_refused(engine: Process) -> None:
    with serving(engine) as gateway, ExitStack() as stack:
        again = ("--engine", engine.url, "--workers", "2", "--port", str(gateway.port))
        second = stack.enter_context(lensmith_serve(*again))
        assert second.process.wait(30) == 1
        assert f"Port {gateway.port} on 127.0.0.1 is in use" in second.log()
