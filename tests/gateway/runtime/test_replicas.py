"""Two replicas behind one gateway: what happens to requests when one of them is lost, and when it comes back."""

from __future__ import annotations

import concurrent.futures
import json
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from gateway.scheduling.router import FAILURES
from tests.support.gateway.processes import Process, fake_engine, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask, envelope


def body(prompt: str, **fields: object) -> dict[str, object]:
    return {"model": "fake", "messages": ask(prompt), **fields}


def config(path: Path, *engines: Process, **settings: float) -> str:
    replicas = [{"url": engine.url} for engine in engines]
    # JSON is YAML.
    path.write_text(json.dumps({"settings": settings, "models": {"fake": {"replicas": replicas}}}))
    return str(path)


class Pair:
    """A gateway and the two engines behind it."""

    def __init__(self, gateway: Process, *engines: Process) -> None:
        self.gateway = gateway
        self.engines = list(engines)
        self._client = httpx.Client(timeout=30)  # one, because each makes a TLS context

    def post(self, prompt: str, **fields: object) -> httpx.Response:
        return self._client.post(self.gateway.url + CHAT, json=body(prompt, **fields))

    def stats(self, name: str) -> list[int]:
        return [int(self._client.get(engine.url + "/stats").json()[name]) for engine in self.engines]

    def all_ready(self) -> bool:
        replicas = self._client.get(self.gateway.url + "/ready").json()["models"]["fake"]["replicas"]
        return all(replica["ready"] and "reason" not in replica for replica in replicas)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    path = tmp_path_factory.mktemp("replicas") / "gateway.yaml"
    with (
        fake_engine() as first,
        fake_engine() as second,
        lensmith_serve("--config", config(path, first, second, engine_timeout=10)) as gateway,
    ):
        gateway.wait_until("/ready", 200)
        yield Pair(gateway, first, second)


@pytest.fixture
def pair(started: Pair) -> Pair:
    until("both replicas are ready", started.all_ready)
    before = started.stats("finished")
    for number in range(8):  # an answer from each: no failure of an earlier test counts
        assert started.post(f"hi {number}").status_code == 200
    assert all(after > count for after, count in zip(started.stats("finished"), before, strict=True))
    return started


def test_both_work_and_the_log_names_the_one_that_did(pair: Pair) -> None:
    before = pair.stats("started")
    prompts = [f"hi {number}" for number in range(20)]  # the beginning decides where each goes
    assert [pair.post(prompt).status_code for prompt in prompts] == [200] * 20
    served = [after - count for after, count in zip(pair.stats("started"), before, strict=True)]
    assert sum(served) == 20
    assert all(count >= 3 for count in served)
    lines = [json.loads(line) for line in pair.gateway.log().splitlines() if line.startswith("{")]
    names = [line["engine"] for line in lines[-20:]]
    assert sorted(names.count(f"127.0.0.1:{engine.port}") for engine in pair.engines) == sorted(served)


def test_a_conversation_stays_at_its_replica(pair: Pair) -> None:
    before = pair.stats("started")
    messages = ask("hi")
    for _ in range(4):
        answer = httpx.post(pair.gateway.url + CHAT, json={"model": "fake", "messages": messages}, timeout=30)
        messages = [*messages, answer.json()["choices"][0]["message"], *ask("and then?")]
    served = [after - count for after, count in zip(pair.stats("started"), before, strict=True)]
    assert sorted(served) == [0, 4]


def test_a_reset_before_the_first_byte_is_tried_at_the_other_replica_once(pair: Pair) -> None:
    """And there once more on a new connection, since the one that broke may have been idle for too long."""
    before = pair.stats("started")
    assert envelope(pair.post("fault reset"), 502)["code"] == "engine_error"
    assert sorted(after - count for after, count in zip(pair.stats("started"), before, strict=True)) == [1, 2]
    line = json.loads([line for line in pair.gateway.log().splitlines() if line.startswith("{")][-1])
    assert line["attempts"] == 2


@pytest.mark.parametrize("fault", ["mid-reset", "mid-end", "status 500", "status 400", "status 429", "broken-json"])
def test_what_has_begun_or_was_answered_is_not_sent_twice(pair: Pair, fault: str) -> None:
    before = sum(pair.stats("started"))
    answer = pair.post(f"fault {fault}", stream=fault.startswith("mid"))
    assert "error" in answer.text
    assert "[DONE]" not in answer.text
    assert sum(pair.stats("started")) == before + 1


def test_the_last_replicas_status_and_retry_after_are_kept(pair: Pair) -> None:
    answer = pair.post("fault status 503")
    assert envelope(answer, 503)["message"] == "max_tokens is too large"
    assert answer.headers["retry-after"] == "7"


def test_bad_requests_of_one_client_shut_nobody_out(pair: Pair) -> None:
    for number in range(3 * FAILURES):
        assert pair.post(f"fault status 400 {number}").status_code == 400
        assert pair.post(f"fault status 500 {number}").status_code == 500
    for number in range(3 * FAILURES):
        assert pair.post(f"fault status 500 {number}").status_code == 500
    assert pair.post("hi").status_code == 200


def test_a_replica_killed_in_the_middle_loses_no_request_that_had_not_begun(pair: Pair) -> None:
    first = pair.engines[0]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        whole = [pool.submit(pair.post, f"slow 2 {number}") for number in range(12)]
        streams = [pool.submit(pair.post, f"count 30 0.1 {number}", stream=True) for number in range(4)]
        until("both are at work", lambda: min(pair.stats("running")) >= 2)
        first.process.send_signal(signal.SIGKILL)
        answers = [answer.result() for answer in whole]
        texts = [answer.result().text for answer in streams]
    assert [answer.status_code for answer in answers] == [200] * 12
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"late"}
    for text in texts:
        assert text.endswith("data: [DONE]\n\n") != ('"error"' in text), "it ended well or says that it did not"
    assert sum(answer.status_code == 200 for answer in (pair.post(f"hi {n}") for n in range(10))) == 10
    reason = until("its death is told", lambda: httpx.get(pair.gateway.url + "/ready").json())
    assert reason["status"] == "ready"

    with fake_engine(port=first.port) as again:
        pair.engines[0] = again
        until("it is ready again", pair.all_ready)
        assert [pair.post(f"hi {number}").status_code for number in range(10)] == [200] * 10
        assert pair.stats("started")[0] > 0


def test_an_engine_that_hangs_rests_and_its_requests_get_an_answer_at_once(tmp_path: Path) -> None:
    with fake_engine() as engine:
        path = config(tmp_path / "gateway.yaml", engine, engine_timeout=0.5)
        with lensmith_serve("--config", path) as gateway:
            gateway.wait_until("/ready", 200)
            pair = Pair(gateway, engine)
            for _ in range(FAILURES):
                assert envelope(pair.post("fault hang"), 504)["code"] == "engine_timeout"
            started = pair.stats("started")
            refused = pair.post("hi")
            assert "could not be reached by 3 requests in a row" in envelope(refused, 503)["message"]
            assert int(refused.headers["retry-after"]) >= 1
            assert pair.stats("started") == started
            assert gateway.metric("lensmith_upstream_resting", engine=f"127.0.0.1:{engine.port}") == 1
            until("it is tried again", lambda: pair.post("hi").status_code == 200)
            assert pair.post("hi").status_code == 200
            assert gateway.metric("lensmith_upstream_resting", engine=f"127.0.0.1:{engine.port}") == 0


def test_no_replica_at_all_is_a_503_that_says_why_but_not_where_engines_are(tmp_path: Path) -> None:
    with fake_engine() as first, fake_engine() as second:
        path = config(tmp_path / "gateway.yaml", first, second)
        with lensmith_serve("--config", path) as gateway:
            gateway.wait_until("/ready", 200)
            first.end(signal.SIGKILL)
            second.end(signal.SIGKILL)
            pair = Pair(gateway, first, second)
            assert envelope(pair.post("hi"), 503)["code"] == "engine_unavailable"
            told = gateway.wait_until("/ready", 503).json()
            assert told["reason"].count("nothing answers at http://127.0.0.1:") == 2
            message = envelope(pair.post("hi"), 503)["message"]
            assert all(words in message for words in ("nothing answers", "engine 1", "engine 2"))
            assert not any(secret in message for secret in ("127.0.0.1", "://", str(first.port), str(second.port)))


def test_idle_connections_that_all_replicas_close_just_then_are_no_failure(tmp_path: Path) -> None:
    """Each engine ends a connection at its second request, as if its idle timeout had run out at that moment."""
    with ForgetfulEngine() as first, ForgetfulEngine() as second:
        replicas = [{"url": engine.url} for engine in (first, second)]
        path = tmp_path / "gateway.yaml"
        path.write_text(json.dumps({"models": {"fake": {"replicas": replicas}}}))
        with lensmith_serve("--config", str(path)) as gateway:
            gateway.wait_until("/ready", 200)
            body = {"model": "fake", "messages": ask("hi")}
            seen = [httpx.post(gateway.url + CHAT, json=body).status_code for _ in range(20)]
    assert seen == [200] * 20
    assert first.ended + second.ended >= 10


class ForgetfulEngine:
    """Answers the first completion on each connection and closes the connection when it gets another one."""

    def __init__(self) -> None:
        self.ended = 0
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            completions = 0

            def answer(self, payload: object) -> None:
                body = json.dumps(payload).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.answer({"object": "list", "data": [{"id": "fake"}]})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.completions += 1
                if self.completions > 1:
                    engine.ended += 1
                    self.close_connection = True
                    return
                choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
                self.answer({"id": "c", "choices": [choice]})

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ForgetfulEngine:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
