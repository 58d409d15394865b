"""The engine as a child process: started, watched, started again, and never left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.support.gateway.processes import Process, until
from tests.support.gateway.requests import CHAT, ask, envelope
from tests.support.gateway.supervised import child, serve_fake


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def served() -> Iterator[Process]:
    with serve_fake() as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway


def answers(gateway: Process) -> bool:
    return httpx.post(gateway.url + CHAT, json={"model": "fake", "messages": ask("hi")}).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_killed_while_idle_comes_back_and_ready_tells_the_truth(served: Process, number: int) -> None:
    first = child(served)
    assert answers(served)
    first.send_signal(number)
    told = served.wait_until("/ready", 503)
    assert "retry-after" in told.headers
    # One that is asked to end may stop to answer before it has ended.
    assert any(words in told.json()["reason"] for words in ("Next attempt in 1 s", "starting", "does not answer"))
    assert served.wait_until("/health", 200)
    served.wait_until("/ready", 200)
    assert child(served).pid != first.pid
    assert answers(served)
    assert served.metric("lensmith_engine_restarts_total") == 1


def test_the_reason_names_the_exit_code_and_the_last_log_line() -> None:
    with serve_fake(first_delay=30) as gateway:
        gateway.wait_until("/ready", 200)
        body = {"model": "fake", "messages": ask("fault die")}
        envelope(httpx.post(gateway.url + CHAT, json=body), 502)
        reason = gateway.wait_until("/ready", 503).json()["reason"]
        assert reason.startswith(
            "The fake engine exited with code 3. Its last log line: fake engine: out of memory Next attempt in "
        )
        error = envelope(httpx.post(gateway.url + CHAT, json=body), 503)
        assert error["message"].startswith("The fake engine exited with code 3.")
        assert "fake: fake engine: out of memory" in gateway.log()


def test_a_child_that_hangs_is_ended_and_replaced(served: Process) -> None:
    first = child(served)
    first.suspend()
    assert "not answer" in served.wait_until("/ready", 503).json()["reason"]
    until("the first child's end", lambda: gone(first.pid))
    served.wait_until("/ready", 200)
    assert answers(served)


def test_ready_says_that_the_engine_is_starting() -> None:
    with serve_fake("--load-seconds", "1") as gateway:
        assert gateway.wait_until("/ready", 503).json()["reason"] == "The fake engine is starting."
        gateway.wait_until("/ready", 200)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_gateway_and_child_with_code_0(number: int) -> None:
    with serve_fake() as gateway:
        gateway.wait_until("/ready", 200)
        engine = child(gateway)
        assert gateway.end(number) == 0, gateway.log()
        assert gone(engine.pid)
        assert "Traceback" not in gateway.log()


def test_a_signal_while_the_engine_starts() -> None:
    with serve_fake("--load-seconds", "20") as gateway:
        gateway.wait_until("/ready", 503)
        engine = child(gateway)
        assert gateway.end() == 0
        assert gone(engine.pid)


def test_a_killed_gateway_takes_its_child_along(served: Process) -> None:
    engine = child(served)
    served.end(signal.SIGKILL)
    until("the child's end", lambda: gone(engine.pid))


def test_a_running_stream_ends_well_when_the_gateway_is_told_to_stop(served: Process) -> None:
    body = {"model": "fake", "messages": ask("count 20 0.05"), "stream": True}
    with httpx.stream("POST", served.url + CHAT, json=body) as answer:
        events = answer.iter_lines()
        next(events)
        os.kill(served.process.pid, signal.SIGTERM)
        rest = "".join(events)
    assert rest.endswith("data: [DONE]")
    assert served.process.wait(20) == 0


def test_an_engine_that_never_starts_ends_the_command_with_one_sentence() -> None:
    with serve_fake("--start-fault", first_delay=0.05) as gateway:
        assert gateway.process.wait(30) == 1
        last = gateway.log().strip().splitlines()[-1]
        assert last == (
            "Error: The fake engine exited with code 1. Its last log line: fake engine: CUDA error: no device "
            "It was started 3 times and never became ready."
        )
        assert "Traceback" not in gateway.log()


def test_the_child_listens_on_loopback_only_with_a_key_of_its_own(served: Process) -> None:
    engine = child(served)
    listening = [c.laddr for c in engine.net_connections() if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening] == ["127.0.0.1"]
    body = {"model": "fake", "messages": ask("hi")}
    direct = httpx.post(f"http://127.0.0.1:{listening[0].port}{CHAT}", json=body)
    assert direct.status_code == 401
    assert os.getpgid(engine.pid) != os.getpgid(served.process.pid)
