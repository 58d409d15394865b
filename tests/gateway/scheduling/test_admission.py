"""The admission object, told the time by the tests; then the same through a real gateway."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.scheduling.admission import UNKNOWN_RETRY, Admission, Refused, Ticket
from tests.support.gateway.processes import Process, fake_engine, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask, envelope


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_run_while_there_are_slots_then_wait_then_are_refused() -> None:
    admission = Admission(slots=2, max_waiting=1)
    first, second, third = (admission.enter("") for _ in range(3))
    assert [ticket.started is not None for ticket in (first, second, third)] == [True, True, False]
    with pytest.raises(Refused) as refused:
        admission.enter("")
    assert (refused.value.reason, refused.value.retry_after) == ("queue_full", UNKNOWN_RETRY)
    assert admission.release(first) == [third]


def test_retry_after_is_the_time_in_which_those_waiting_will_have_run() -> None:
    clock = Clock()
    admission = Admission(slots=2, max_waiting=3, clock=clock)
    running = [admission.enter("") for _ in range(2)]
    clock.now = 8.0
    admission.release(running[0])
    admission.enter("")
    for _ in range(3):
        admission.enter("")
    with pytest.raises(Refused) as refused:
        admission.enter("")
    assert refused.value.retry_after == (3 + 1) * 8.0 / 2


def test_who_would_wait_longer_than_its_timeout_is_refused_at_once() -> None:
    clock = Clock()
    admission = Admission(slots=1, max_waiting=10, clock=clock)
    ticket = admission.enter("")
    clock.now = 5.0
    admission.release(ticket)
    admission.enter("")
    with pytest.raises(Refused, match="queue_timeout"):
        admission.enter("", timeout=4.9)
    assert admission.enter("", timeout=5.0).started is None


def test_what_was_broken_off_says_nothing_about_the_time_an_answer_takes() -> None:
    clock = Clock()
    admission = Admission(slots=1, max_waiting=1, clock=clock)
    ticket = admission.enter("")
    clock.now = 100.0
    admission.release(ticket, served=False)
    assert admission.retry_after() == UNKNOWN_RETRY


def test_the_time_an_answer_takes_is_a_mean_that_a_single_one_changes_by_a_tenth() -> None:
    clock = Clock()
    admission = Admission(slots=1, max_waiting=1, clock=clock)
    for seconds in (10.0, 20.0):
        ticket = admission.enter("")
        clock.now += seconds
        admission.release(ticket)
    assert admission.retry_after() == pytest.approx(11.0)


def test_nobody_is_told_to_come_back_in_less_than_a_second() -> None:
    clock = Clock()
    admission = Admission(slots=1, max_waiting=1, clock=clock)
    ticket = admission.enter("")
    clock.now = 0.1
    admission.release(ticket)
    assert admission.retry_after() == 1.0


def test_those_who_wait_run_as_soon_as_there_are_more_slots() -> None:
    admission = Admission(slots=1, max_waiting=10)
    first, second, third, fourth = (admission.enter("") for _ in range(4))
    assert admission.resize(3) == [second, third]
    assert admission.resize(1) == []
    assert [admission.release(ticket) for ticket in (first, second)] == [[], []]
    assert admission.release(third) == [fourth]


def test_tenants_take_turns() -> None:
    admission = Admission(slots=1, max_waiting=10)
    running = admission.enter("greedy")
    waiting = [admission.enter(tenant) for tenant in ("greedy", "greedy", "greedy", "small", "greedy", "small")]
    order = []
    while waiting:
        (running,) = admission.release(running)
        waiting.remove(running)
        order.append(running.tenant)
    assert order == ["greedy", "small", "greedy", "small", "greedy", "greedy"]


class Simulation(RuleBasedStateMachine):
    """Any sequence of arrivals, ends and departures from the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.admission = Admission(slots=4, max_waiting=6, clock=self.clock)
        self.running: list[Ticket] = []
        self.waiting: list[Ticket] = []

    @rule(tenant=st.sampled_from("abc"), weight=st.integers(1, 6))
    def arrive(self, tenant: str, weight: int) -> None:
        if len(self.waiting) == 6:
            with pytest.raises(Refused, match="queue_full") as refused:
                self.admission.enter(tenant, weight)
            assert refused.value.retry_after >= 1
        else:
            ticket = self.admission.enter(tenant, weight)
            (self.running if ticket.started is not None else self.waiting).append(ticket)

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data(), seconds=st.floats(0, 30), served=st.booleans())
    def leave(self, data: st.DataObject, seconds: float, served: bool) -> None:
        self.clock.now += seconds
        ticket = data.draw(st.sampled_from(self.running + self.waiting))
        (self.running if ticket in self.running else self.waiting).remove(ticket)
        for started in self.admission.release(ticket, served):
            earlier = [t for t in self.waiting if t.tenant == started.tenant and t.arrived < started.arrived]
            assert not earlier, "within a tenant, first come is first served"
            self.waiting.remove(started)
            self.running.append(started)

    @invariant()
    def counts_agree_and_no_slot_is_lost(self) -> None:
        assert self.admission.running == sum(ticket.weight for ticket in self.running) <= 4
        assert self.admission.waiting == len(self.waiting) <= 6
        if not self.running:
            assert not self.waiting


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.fixture(scope="module")
def narrow() -> Iterator[tuple[Process, Process]]:
    """An engine, and a gateway with one slot, two places to wait, and little room and a short time otherwise."""
    options = ["--max-running", "1", "--max-waiting", "2", "--queue-timeout", "20"]
    options += ["--max-bytes-in-flight", "3000000", "--sse-keepalive", "0.2"]
    with fake_engine() as engine, lensmith_serve("--engine", engine.url, *options) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway, engine


def body(prompt: str) -> dict[str, object]:
    return {"model": "fake", "messages": ask(prompt)}


def test_the_gateway_hands_on_one_at_a_time_and_refuses_what_does_not_fit(narrow: tuple[Process, Process]) -> None:
    gateway, engine = narrow
    before = gateway.metric("lensmith_batch_size_sum"), gateway.metric("lensmith_batch_size_count")
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(httpx.post, gateway.url + CHAT, json=body("slow 3"), timeout=30)]
        until("one runs", lambda: gateway.metric("lensmith_requests_running") == 1)
        answers += [pool.submit(httpx.post, gateway.url + CHAT, json=body("hi"), timeout=30) for _ in range(2)]
        until("two wait", lambda: gateway.metric("lensmith_requests_waiting") == 2)
        assert httpx.get(engine.url + "/stats").json()["running"] == 1
        refused = httpx.post(gateway.url + CHAT, json=body("hi"))
        assert envelope(refused, 503)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert [answer.result().status_code for answer in answers] == [200] * 3
    after = gateway.metric("lensmith_batch_size_sum"), gateway.metric("lensmith_batch_size_count")
    assert (after[0] - before[0], after[1] - before[1]) == (3, 3)
    assert gateway.metric("lensmith_request_queue_seconds_sum") > 1


def test_a_client_that_goes_while_waiting_gives_its_place_back(narrow: tuple[Process, Process]) -> None:
    gateway, engine = narrow
    before = httpx.get(engine.url + "/stats").json()["started"]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        slow = pool.submit(httpx.post, gateway.url + CHAT, json=body("slow 2"), timeout=30)
        until("one runs", lambda: gateway.metric("lensmith_requests_running") == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(gateway.url + CHAT, json=body("hi"), timeout=0.3)
        until("nobody waits", lambda: gateway.metric("lensmith_requests_waiting") == 0)
        assert slow.result().status_code == 200
    assert httpx.get(engine.url + "/stats").json()["started"] == before + 1


def test_a_request_says_how_long_it_would_wait(narrow: tuple[Process, Process]) -> None:
    gateway, _ = narrow
    url, headers = gateway.url + CHAT, {"x-request-timeout": "0.5"}
    started = time.monotonic()
    late = httpx.post(url, json=body("slow 20"), headers=headers, timeout=30)
    assert envelope(late, 504)["code"] == "request_timeout"
    assert time.monotonic() - started < 15
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(httpx.post, url, json=body("slow 2"), timeout=30)
        until("one runs", lambda: gateway.metric("lensmith_requests_running") == 1)
        assert envelope(httpx.post(url, json=body("hi"), headers=headers, timeout=30), 503)["code"] == "queue_timeout"
        assert slow.result().status_code == 200
    bad = httpx.post(url, json=body("hi"), headers={"x-request-timeout": "soon"})
    assert envelope(bad, 400)["param"] == "x-request-timeout"


def test_the_bytes_of_all_bodies_together_are_limited(narrow: tuple[Process, Process]) -> None:
    url, large = narrow[0].url + CHAT, {"user": "x" * 2_000_000}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(httpx.post, url, json={**body("slow 2"), **large}, timeout=30)
        until("one runs", lambda: narrow[0].metric("lensmith_requests_running") == 1)
        refused = httpx.post(url, json={**body("hi"), **large})
        assert envelope(refused, 503)["code"] == "bytes_in_flight"
        assert httpx.post(url, json=body("hi"), timeout=30).status_code == 200
        assert slow.result().status_code == 200
    assert httpx.post(url, json={**body("hi"), **large}).status_code == 200


def test_a_silent_stream_is_kept_alive_with_comments(narrow: tuple[Process, Process]) -> None:
    answer = httpx.post(narrow[0].url + CHAT, json={**body("count 3 0.5"), "stream": True}, timeout=30)
    events = [event for event in answer.text.split("\n\n") if event]
    assert events.count(": still working") >= 3
    assert events[-1] == "data: [DONE]"
