"""Jobs: each ends in one right state, whatever happens to it, to its wrapper or to the studio."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from studio.errors import StudioError
from studio.jobs.job import PROCESS, Job, processes_of
from studio.jobs.process import ProcessId
from studio.jobs.spec import CPU
from studio.jobs.store import Jobs
from tests.support.gateway.processes import until
from tests.support.studio.jobs import SLEEP, STUBBORN, alive, finished, printed, python


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "jobs")


def running(jobs: Jobs, code: str, cwd: Path, **fields: object) -> Job:
    """A job that has begun to print."""
    job = jobs.submit(python(code, cwd, **fields))
    printed(job, "up")
    return jobs.get(job.id)


def pids(job: Job) -> tuple[int, int]:
    """Those of the wrapper and of the command."""
    wrapper, command = processes_of(job.folder)
    assert wrapper is not None
    assert command is not None
    return wrapper.pid, command.pid


def test_a_job_that_exits_with_0_is_done_and_its_output_is_kept(jobs: Jobs, tmp_path: Path) -> None:
    job = finished(jobs, jobs.submit(python("print('hello')", tmp_path)))
    assert (job.state, job.exit_code, job.signal) == ("done", 0, None)
    assert job.tail() == ("hello\n", 6)
    assert job.started_at is not None
    assert job.ended_at is not None
    assert job.queued_at <= job.started_at <= job.ended_at


@pytest.mark.parametrize(
    ("code", "exit_code", "number"),
    [("raise SystemExit(3)", 3, None), ("import os; os.kill(os.getpid(), 11)", None, 11)],
)
def test_a_job_that_ends_otherwise_has_failed(
    jobs: Jobs, tmp_path: Path, code: str, exit_code: int | None, number: int | None
) -> None:
    job = finished(jobs, jobs.submit(python(code, tmp_path)))
    assert (job.state, job.exit_code, job.signal) == ("failed", exit_code, number)


def test_a_command_that_is_not_there_has_failed_and_says_so(jobs: Jobs, tmp_path: Path) -> None:
    job = finished(jobs, jobs.submit(python("", tmp_path, command=["/no/such/program"])))
    assert (job.state, job.reason) == ("failed", "not started")
    assert "/no/such/program could not be started: No such file or directory" in job.tail()[0]


def test_a_stopped_job_may_save_first(jobs: Jobs, tmp_path: Path) -> None:
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)));"
    job = running(jobs, code + SLEEP, tmp_path)
    assert jobs.stop(job.id).state == "stopping"
    job = finished(jobs, job)
    assert (job.state, job.exit_code) == ("stopped", 143)
    assert "saved" in job.tail()[0]


def test_a_stopped_job_that_does_not_end_is_killed_after_its_grace(jobs: Jobs, tmp_path: Path) -> None:
    job = running(jobs, STUBBORN, tmp_path, grace=0.3)
    jobs.stop(job.id)
    job = finished(jobs, job)
    assert (job.state, job.signal) == ("stopped", signal.SIGKILL)


def test_a_suspended_job_is_stopped_too(jobs: Jobs, tmp_path: Path) -> None:
    job = running(jobs, SLEEP, tmp_path)
    os.kill(pids(job)[1], signal.SIGSTOP)
    jobs.stop(job.id)
    assert finished(jobs, job).state == "stopped"


GROUP = "import os, subprocess, sys; p = [subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=new) "
GROUP += "for new in (False, True)]; print('pids', *(q.pid for q in p), 'up', flush=True); p[0].wait()"


def test_a_stop_ends_everything_that_the_job_started(jobs: Jobs, tmp_path: Path) -> None:
    job = running(jobs, GROUP.format(code=STUBBORN), tmp_path, grace=0.3)
    children = [int(pid) for pid in re.findall(r"\d+", job.tail()[0].partition("up")[0])]
    assert len(children) == 2
    assert all(map(alive, children))
    jobs.stop(job.id)
    assert finished(jobs, job).state == "stopped"
    assert not any(map(alive, children))


def test_nothing_of_a_job_survives_its_end(jobs: Jobs, tmp_path: Path) -> None:
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print(p.pid)"
    job = finished(jobs, jobs.submit(python(code, tmp_path)))
    assert job.state == "done"
    assert not alive(int(job.tail()[0].split()[0]))


def test_a_killed_job_has_failed(jobs: Jobs, tmp_path: Path) -> None:
    job = running(jobs, SLEEP, tmp_path)
    os.kill(pids(job)[1], signal.SIGKILL)
    job = finished(jobs, job)
    assert (job.state, job.signal) == ("failed", signal.SIGKILL)


@pytest.mark.parametrize("code", [SLEEP, STUBBORN], ids=["ends by itself", "must be killed"])
def test_a_job_whose_wrapper_was_killed_is_lost_and_nothing_of_it_runs_on(
    jobs: Jobs, tmp_path: Path, code: str
) -> None:
    job = running(jobs, code, tmp_path, grace=0.3)
    wrapper, command = pids(job)
    os.kill(wrapper, signal.SIGKILL)
    job = finished(jobs, job)
    assert (job.state, job.exit_code) == ("lost", None)
    assert not alive(command)


def test_a_signal_to_the_wrapper_stops_the_job(jobs: Jobs, tmp_path: Path) -> None:
    job = running(jobs, SLEEP, tmp_path)
    os.kill(pids(job)[0], signal.SIGTERM)
    assert finished(jobs, job).state == "stopped"


def test_a_job_that_says_nothing_for_too_long_has_failed_as_hung(jobs: Jobs, tmp_path: Path) -> None:
    job = finished(jobs, running(jobs, SLEEP, tmp_path, silence=0.5))
    assert (job.state, job.reason, job.signal) == ("failed", "hung", signal.SIGTERM)


def test_another_pid_owner_is_not_taken_for_the_job(jobs: Jobs, tmp_path: Path) -> None:
    """The wrapper's and the command's pids are given to other processes, as after a restart of the machine."""
    job = running(jobs, SLEEP, tmp_path)
    wrapper, command = pids(job)
    os.kill(wrapper, signal.SIGKILL)
    until("the command ends", lambda: not alive(command))
    other = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    try:
        now = ProcessId.of(other.pid)
        assert now is not None
        stale = now.as_plain() | {"started": now.started - 1}
        (job.folder / PROCESS).write_text(json.dumps({"wrapper": stale, "command": stale, "started_at": 0}))
        assert finished(jobs, job).state == "lost"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_new_store_finds_the_job_of_another_process_and_its_end(jobs: Jobs, tmp_path: Path) -> None:
    """The studio is killed in the middle of a job."""
    code = (
        "import sys; from pathlib import Path; from tests.support.studio.jobs import SLEEP, python;"
        "from studio.jobs.store import Jobs; job = Jobs(Path(sys.argv[1])).submit(python(SLEEP, Path('.')));"
        "print(job.id, flush=True); import os; os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(jobs.folder)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    job = jobs.get(killed.stdout.strip())
    printed(job, "up")
    jobs.tick()
    assert jobs.get(job.id).state == "running"
    jobs.stop(job.id)
    assert finished(jobs, job).state == "stopped"


def test_jobs_wait_for_their_gpu_in_order_and_see_no_other(jobs: Jobs, tmp_path: Path) -> None:
    show = "import os; print('up', os.environ['CUDA_VISIBLE_DEVICES'], flush=True);"
    first = running(jobs, show + SLEEP, tmp_path, gpus=(0, 1))
    second = jobs.submit(python(show, tmp_path, gpus=(1,)))
    third = jobs.submit(python(show, tmp_path, gpus=(1, 2)))
    other = finished(jobs, jobs.submit(python(show, tmp_path, gpus=(3,))))
    assert [jobs.get(job.id).state for job in (second, third)] == ["queued", "queued"]
    assert other.tail()[0] == "up 3\n"
    assert first.tail()[0].startswith("up 0,1\n")
    jobs.stop(first.id)
    second, third = finished(jobs, second), finished(jobs, third)
    assert second.ended_at is not None
    assert third.started_at is not None
    assert third.started_at >= second.ended_at
    assert third.tail()[0] == "up 1,2\n"


def test_the_queue_goes_on_while_no_studio_runs(jobs: Jobs, tmp_path: Path) -> None:
    show = "import os; print('up', repr(os.environ['CUDA_VISIBLE_DEVICES']), flush=True);"
    running(jobs, show + "import time; time.sleep(0.5)", tmp_path, gpus=(CPU,))
    second = jobs.submit(python(show, tmp_path, gpus=(CPU,)))
    assert second.state == "queued"
    until("the second one ends, though nobody looks after it", lambda: not jobs.get(second.id).active)
    assert jobs.get(second.id).tail()[0] == "up ''\n"


def test_a_waiting_job_that_is_stopped_never_starts(jobs: Jobs, tmp_path: Path) -> None:
    first = running(jobs, SLEEP, tmp_path, gpus=(0,))
    second = jobs.submit(python("print('ran')", tmp_path, gpus=(0,)))
    assert jobs.stop(second.id).state == "stopped"
    jobs.stop(first.id)
    finished(jobs, first)
    assert jobs.get(second.id).started_at is None


def test_of_two_that_start_the_same_at_once_one_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    outcomes: list[object] = []

    def start(store: Jobs) -> None:
        try:
            outcomes.append(store.submit(python(SLEEP, tmp_path, exclusive="run/one")))
        except StudioError as error:
            outcomes.append(error.status)

    threads = [threading.Thread(target=start, args=(Jobs(jobs.folder),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(outcome) for outcome in outcomes if outcome == 409) == ["409"] * 3
    (job,) = jobs.list("test")
    jobs.stop(job.id)
    finished(jobs, job)
    again = jobs.submit(python("", tmp_path, exclusive="run/one"))
    assert finished(jobs, again).state == "done"


def test_many_stores_start_a_job_once(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.submit(python("print('ran')", tmp_path))
    for _ in range(20):
        Jobs(jobs.folder).tick()
    assert finished(jobs, job).tail()[0] == "ran\n"


def test_jobs_are_found_by_kind_and_by_what_they_belong_to(jobs: Jobs, tmp_path: Path) -> None:
    made = [
        finished(jobs, jobs.submit(python("", tmp_path, kind=kind, about={"run": name})))
        for kind, name in (("train", "a"), ("train", "b"), ("check", "a"))
    ]
    assert [job.id for job in jobs.list()] == [job.id for job in reversed(made)]
    assert [job.id for job in jobs.list("train", run="a")] == [made[0].id]


@pytest.mark.parametrize("wrong", ["", "..", "../../etc", "20260101-000000000-abcdef", "x\x00y"])
def test_an_id_that_is_none_is_not_found(jobs: Jobs, wrong: str) -> None:
    with pytest.raises(StudioError) as caught:
        jobs.get(wrong)
    assert caught.value.status == 404


def test_a_job_can_tell_the_page_events(jobs: Jobs, tmp_path: Path) -> None:
    code = "import os; open(os.environ['LENSMITH_JOB_FOLDER'] + '/events.jsonl', 'a').write('{}\\n')"
    job = finished(jobs, jobs.submit(python(code, tmp_path)))
    assert job.events_path.read_text() == "{}\n"


def test_the_log_is_read_from_an_offset_on_and_no_more_than_a_piece_at_once(jobs: Jobs, tmp_path: Path) -> None:
    job = finished(jobs, jobs.submit(python("print('x' * 100_000 + 'end')", tmp_path)))
    text, end = job.tail()
    assert end == 100_004
    assert len(text) == 65536
    assert text.endswith("end\n")
    assert job.tail(100_000) == ("end\n", 100_004)
    assert job.tail(10**9) == ("", 100_004)


def test_on_a_full_disk_a_job_that_lost_its_wrapper_is_over_all_the_same(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(jobs, SLEEP, tmp_path)
    wrapper, command = pids(job)
    os.kill(wrapper, signal.SIGKILL)
    until("the command ends", lambda: not alive(command))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("studio.jobs.store.write_exit", full)
    jobs.tick()
    assert jobs.get(job.id).state == "lost"


def test_a_job_for_which_the_disk_has_no_room_says_so(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("studio.jobs.store.write_json", full)
    with pytest.raises(StudioError) as caught:
        jobs.submit(python("", tmp_path))
    assert (caught.value.status, caught.value.values["reason"]) == (507, "No space left on device")
    assert jobs.list() == []
