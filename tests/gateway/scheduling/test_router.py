"""The router, told the time and the outcomes by the tests."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.scheduling.affinity import affinity
from gateway.scheduling.router import FAILURES, FIRST_COOLDOWN, MAX_COOLDOWN, Assignment, Outcome, Router, Target


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def router(*slots: int) -> tuple[Router, list[Target], Clock]:
    clock = Clock()
    targets = [Target(f"replica-{at}", count) for at, count in enumerate(slots)]
    return Router(targets, clock), targets, clock


def entered(router: Router, **options: object) -> Assignment:
    assignment = router.enter(**options)
    assert assignment is not None
    return assignment


def fail(router: Router, outcome: Outcome, times: int = FAILURES, **options: object) -> None:
    for _ in range(times):
        router.release(entered(router, **options), outcome)


def test_requests_go_where_the_fewest_are_for_the_slots_there_are() -> None:
    routes, _, _ = router(2, 4)
    chosen = Counter(entered(routes).target.name for _ in range(6))
    assert chosen == {"replica-0": 2, "replica-1": 4}


def test_replicas_that_are_equally_full_take_turns() -> None:
    routes, _, _ = router(4, 4)
    names = []
    for _ in range(4):
        assignment = entered(routes)
        names.append(assignment.target.name)
        routes.release(assignment, Outcome.ANSWERED)
    assert names == ["replica-0", "replica-1", "replica-0", "replica-1"]


def test_one_that_is_down_or_was_tried_gets_nothing() -> None:
    routes, (first, second), _ = router(4, 4)
    first.up = False
    assert entered(routes).target is second
    assert routes.enter(tried=[second]) is None
    assert routes.slots == 4


@pytest.mark.parametrize("outcome", [Outcome.UNREACHABLE, Outcome.FAILED])
def test_a_replica_that_fails_in_a_row_rests_and_is_tried_by_one_request(outcome: Outcome) -> None:
    routes, (first, second), clock = router(4, 4)
    fail(routes, outcome, tried=[second])
    assert routes.slots == 4
    assert {entered(routes).target for _ in range(8)} == {second}
    clock.now += FIRST_COOLDOWN
    probe = entered(routes)
    assert (probe.target, probe.half_open) == (first, True)
    assert entered(routes).target is second, "one at a time"
    routes.release(probe, Outcome.ANSWERED)
    assert entered(routes).target is first
    assert routes.slots == 8


def test_each_trial_that_fails_doubles_the_rest_up_to_a_limit() -> None:
    routes, (first,), clock = router(1)
    fail(routes, Outcome.UNREACHABLE)
    cooldowns = []
    for _ in range(8):
        assert first.cooldown_until is not None
        cooldowns.append(first.cooldown_until - clock.now)
        clock.now = first.cooldown_until - 0.01
        assert routes.enter() is None
        assert routes.retry_after == pytest.approx(0.01)
        clock.now = first.cooldown_until
        routes.release(entered(routes), Outcome.UNREACHABLE)
    assert cooldowns[:3] == [FIRST_COOLDOWN, 2 * FIRST_COOLDOWN, 4 * FIRST_COOLDOWN]
    assert cooldowns[-1] == MAX_COOLDOWN


def test_a_trial_that_the_client_gave_up_says_nothing() -> None:
    routes, _, clock = router(1)
    fail(routes, Outcome.UNREACHABLE)
    clock.now += FIRST_COOLDOWN
    routes.release(entered(routes), Outcome.NONE)
    assert entered(routes).half_open


def test_an_answer_that_begins_ends_the_trial_but_one_more_failure_is_enough() -> None:
    routes, (first,), clock = router(4)
    fail(routes, Outcome.UNREACHABLE)
    clock.now += FIRST_COOLDOWN
    probe = entered(routes)
    routes.begun(probe)
    assert not entered(routes).half_open, "others need not wait for its last token"
    routes.release(probe, Outcome.UNREACHABLE)
    assert first.cooldown_until == clock.now + 2 * FIRST_COOLDOWN


def test_the_end_of_an_answer_that_passed_its_trial_starts_no_second_trial() -> None:
    routes, _, clock = router(4)
    fail(routes, Outcome.UNREACHABLE)
    clock.now += FIRST_COOLDOWN
    passed = entered(routes)
    routes.begun(passed)
    fail(routes, Outcome.UNREACHABLE, times=1)
    clock.now += 2 * FIRST_COOLDOWN
    assert entered(routes).half_open
    routes.release(passed, Outcome.NONE)
    assert routes.enter() is None, "one trial at a time"


def test_a_whole_answer_makes_the_next_rest_as_short_as_the_first() -> None:
    routes, (only,), clock = router(1)
    fail(routes, Outcome.UNREACHABLE)
    clock.now += FIRST_COOLDOWN
    fail(routes, Outcome.UNREACHABLE, times=1)
    clock.now += 2 * FIRST_COOLDOWN
    routes.release(entered(routes), Outcome.ANSWERED)
    fail(routes, Outcome.UNREACHABLE)
    assert only.cooldown_until == clock.now + FIRST_COOLDOWN


def test_a_replica_is_closed_to_all_while_it_is_down_or_rests_because_it_was_unreachable() -> None:
    routes, (first, second), clock = router(4, 4)
    assert not routes.is_closed_to_all(first)
    first.up = False
    assert routes.is_closed_to_all(first)
    first.up = True
    fail(routes, Outcome.FAILED, tried=[second])
    assert not routes.is_closed_to_all(first), "it still answers when there is no better one"
    fail(routes, Outcome.UNREACHABLE, tried=[first])
    assert routes.is_closed_to_all(second)
    clock.now += FIRST_COOLDOWN
    assert not routes.is_closed_to_all(second)


def test_the_time_to_retry_is_that_of_the_first_replica_to_come_back() -> None:
    routes, (first, second), clock = router(4, 4)
    assert routes.retry_after == routes.cooldown(first) == 0
    fail(routes, Outcome.UNREACHABLE, tried=[second])
    clock.now += 0.25 * FIRST_COOLDOWN
    fail(routes, Outcome.UNREACHABLE, tried=[first])
    assert routes.retry_after == routes.cooldown(first) == 0.75 * FIRST_COOLDOWN
    first.up = False
    assert routes.retry_after == routes.cooldown(second) == FIRST_COOLDOWN
    second.up = False
    assert routes.retry_after == 0


def test_errors_of_the_only_replica_refuse_nobody() -> None:
    """A client can make an engine fail with its requests; that must not shut out the others."""
    routes, (only,), _ = router(4)
    fail(routes, Outcome.FAILED, times=20)
    assert entered(routes).target is only


def test_an_answer_in_between_keeps_the_circuit_closed() -> None:
    routes, (only,), _ = router(4)
    for _ in range(10):
        fail(routes, Outcome.UNREACHABLE, times=FAILURES - 1)
        routes.release(entered(routes), Outcome.ANSWERED)
    assert only.cooldown_until is None


def test_what_was_on_its_way_when_the_rest_began_makes_it_no_longer() -> None:
    routes, (only,), clock = router(8)
    assignments = [entered(routes) for _ in range(8)]
    for assignment in assignments:
        routes.release(assignment, Outcome.UNREACHABLE)
    assert only.cooldown_until == clock.now + FIRST_COOLDOWN


def test_requests_with_the_same_beginning_go_to_the_same_replica_while_it_is_not_fuller() -> None:
    routes, _, _ = router(8, 8, 8)
    home = entered(routes, affinity=b"a").target
    assert [entered(routes, affinity=b"a").target for _ in range(2)] == [home] * 2
    assert entered(routes, affinity=b"a").target is not home, "3 of 8 here, 0 of 8 elsewhere"


def test_requests_with_the_same_beginning_stay_together_when_all_replicas_are_equally_busy() -> None:
    routes, _, _ = router(8, 8)
    home = entered(routes, weight=4, affinity=b"a").target
    assert entered(routes, weight=4, tried=[home]).target is not home
    assert [entered(routes, affinity=b"a").target for _ in range(2)] == [home] * 2


def test_a_replica_without_a_free_slot_gets_no_request_for_its_cache() -> None:
    routes, _, _ = router(4, 4)
    home = entered(routes, weight=4, affinity=b"a").target
    assert entered(routes, weight=3, tried=[home]).target is not home
    assert entered(routes, affinity=b"a").target is not home


def test_many_beginnings_spread_evenly_and_stay_when_a_replica_goes() -> None:
    routes, targets, _ = router(1000, 1000, 1000)

    def homes() -> dict[bytes, str]:
        found = {}
        for number in range(300):
            assignment = entered(routes, affinity=str(number).encode())
            found[str(number).encode()] = assignment.target.name
            routes.release(assignment, Outcome.ANSWERED)
        return found

    before = homes()
    assert all(60 <= count <= 140 for count in Counter(before.values()).values())
    targets[0].up = False
    after = homes()
    assert all(after[key] == name for key, name in before.items() if name != "replica-0")


class Simulation(RuleBasedStateMachine):
    """Any sequence of requests, outcomes, health checks and passing time."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.targets, self.clock = router(2, 4, 8)
        self.assignments: list[Assignment] = []

    @rule(weight=st.integers(1, 3), affinity=st.sampled_from([None, b"a", b"b"]), tried=st.sets(st.integers(0, 2)))
    def enter(self, weight: int, affinity: bytes | None, tried: set[int]) -> None:
        avoided = [self.targets[at] for at in tried]
        assignment = self.router.enter(weight, affinity, avoided)
        able = [target for target in self.targets if target.up and target not in avoided]
        if assignment is None:
            assert all(target.cooldown_until is not None and target.unreachable for target in able)
            return
        assert assignment.target in able
        cooling = assignment.target.cooldown_until is not None
        if cooling and not assignment.half_open:
            assert not assignment.target.unreachable
            assert all(target.cooldown_until is not None for target in able), "there was a better one"
        if assignment.half_open:
            assert assignment.target.cooldown_until is not None
            assert assignment.target.cooldown_until <= self.clock.now
        self.assignments.append(assignment)

    @precondition(lambda self: self.assignments)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), begins=st.booleans())
    def leave(self, data: st.DataObject, outcome: Outcome, begins: bool) -> None:
        assignment = data.draw(st.sampled_from(self.assignments))
        self.assignments.remove(assignment)
        if begins:
            self.router.begun(assignment)
        self.router.release(assignment, outcome)
        if outcome is Outcome.ANSWERED:
            assert assignment.target.cooldown_until is None

    @rule(at=st.integers(0, 2))
    def flip(self, at: int) -> None:
        target = self.targets[at]
        target.up = not target.up
        if target.up:
            self.router.restore(target)

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def nothing_is_lost(self) -> None:
        for target in self.targets:
            mine = [assignment for assignment in self.assignments if assignment.target is target]
            assert target.outstanding == sum(assignment.weight for assignment in mine)
            if target.half_open:
                assert any(assignment.half_open for assignment in mine)
            if target.cooldown_until is not None:
                assert target.cooldown_until <= self.clock.now + MAX_COOLDOWN

    def teardown(self) -> None:
        for assignment in self.assignments:
            self.router.release(assignment, Outcome.ANSWERED)
        assert all(target.outstanding == 0 for target in self.targets)


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def chat(*messages: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


PICTURES = ["data:image/png;base64," + letter * 3000 for letter in "AB"]


def test_the_system_prompt_and_the_first_image_are_what_counts() -> None:
    one, other = PICTURES
    asked = affinity(chat(("system", "Be brief."), ("user", "What is this?")), [one])
    assert affinity(chat(("system", "Be brief."), ("user", "And its colour?")), [one, other]) == asked
    assert affinity(chat(("system", "Be brief."), ("user", "What is this?")), [other]) != asked
    assert affinity(chat(("system", "Be long."), ("user", "What is this?")), [one]) != asked


def test_a_conversation_without_images_stays_together() -> None:
    first = chat(("system", [{"type": "text", "text": "s"}]), ("user", "hello"))
    later = chat(("system", "s"), ("user", "hello"), ("assistant", "hi"), ("user", "and now?"))
    assert affinity(first, []) == affinity(later, [])
    assert affinity(first, []) != affinity(chat(("system", "s"), ("user", "bye")), [])
    assert affinity({"prompt": "once"}, []) != affinity({"prompt": "twice"}, [])


def test_it_is_the_same_in_every_process() -> None:
    """Not Python's own hash, which differs: several gateways before the same replicas must agree."""
    assert affinity(chat(("user", "hello")), []).hex() == "a7b6eda801e5347d"
