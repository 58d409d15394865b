"""`gateway.yaml`: what it may say, how its mistakes are told, and how a running gateway takes over another one."""

from __future__ import annotations

import concurrent.futures
import json
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import httpx
import jsonschema_rs
import pytest
import yaml
from click.testing import CliRunner

from gateway.cli import serve
from gateway.config.file import MAX_BYTES, ConfigFile
from gateway.config.schema import Config, ConfigError, SamplingConfig
from gateway.contract.requests import ChatRequest
from gateway.contract.validation import validate
from gateway.errors import ApiError
from tests.support.gateway.processes import Process, fake_engine, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask, envelope
from tests.support.paths import ROOT

EXAMPLE = ROOT / "deploy" / "gateway.example.yaml"


def written(folder: Path, text: str) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def mistake(path: Path) -> str:
    with pytest.raises(ConfigError) as told:
        ConfigFile(path).read()
    return str(told.value).replace(f"{path}:", "")


URL = "models: {a: {replicas: [{url: 'http://h'}]}}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (URL + "prot: 1", "2:1: unknown key 'prot'; did you mean 'port'?"),
        (URL + "settings:\n  max_imges: 3", "3:3: unknown key 'max_imges'; did you mean 'max_images'?"),
        (URL + "settings:\n  max_images: 0", "3:15: 'max_images' must be greater than or equal to 1."),
        (URL + "settings: {body_timeout: .inf}", "2:26: 'body_timeout' must be a number above 0."),
        (URL + "port: '80'", "2:7: 'port' must be a whole number."),
        (URL + "host: 1", "2:7: 'host' must be text; put it in quotes."),
        ("models: {a: {replicas: []}}", "1:24: 'replicas' must not be empty."),
        ("models: {a: {aliases: [b]}}", "1:10: 'a' lacks 'replicas'."),
        ("models: {7: {replicas: [{url: 'http://h'}]}}", "1:10: a name must be text; put it in quotes."),
        ("models: {a: 1}", "1:13: 'a' must be a list of 'key: value' lines."),
        ("models: {a: {replicas: [{}]}}", "1:25: give either 'folder' or 'url'."),
        ("models: {a: {replicas: [{url: b, gpus: [0]}]}}", "1:25: 'gpus' is for a replica with a 'folder'."),
        ("models: {a: {replicas: [{folder: b, engine: lmdeply}]}}", "did you mean lmdeploy?"),
        ("models:\n  a:\n    sampling: {temperature: 3}\n    replicas: [{url: b}]", "3:29: 'temperature' must be"),
        (URL + URL, "2:1: 'models' is already set above; remove one of them."),
        ("models: [", "1:10: not YAML: "),
        ("a: !!python/object:os.system x", "1:4: not YAML: "),
        ("- 1", "1:1: the file must be a list of 'key: value' lines."),
        ("port: 1", "1:1: the file lacks 'models'."),
    ],
)
def test_a_mistake_is_told_with_line_and_column(tmp_path: Path, text: str, told: str) -> None:
    assert told in mistake(written(tmp_path, text))


def test_every_mistake_is_told_from_top_to_bottom(tmp_path: Path) -> None:
    path = written(tmp_path, "port: a\nmodels: {m: {replicas: [{url: b, modle: c}]}}\nhost: 1")
    assert [line.split(":")[0] for line in mistake(path).splitlines()] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"a: \x00", "not YAML"),
        (b"#" * (MAX_BYTES + 1), "more than"),
        (b"a: " + b"[" * 50_000, "nested too deeply"),
        (b"&a [*a]", "nested too deeply"),
        (b"a: &a [1,1,1,1,1,1,1,1,1]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(9)), "values"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_bytes(content)
    assert told in mistake(path)


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    assert "does not exist" in mistake(tmp_path / "none.yaml")
    assert "cannot be read" in mistake(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: {a: {replicas: [{url: 'ftp://h'}]}}", "1:31: ftp://h is not the address of an engine"),
        ("models: {a: {replicas: [{folder: none}]}}", "1:34: "),
        ("models: {a: {replicas: [{url: 'http://h', api_key_env: NOT_SET_ANYWHERE}]}}", "1:56: The environment"),
        ("models: {a: {aliases: [b], replicas: [{url: 'http://h'}]}, b: {replicas: [{url: 'http://h'}]}}", "1:24: 'b'"),
        (URL + "keys: none.json", "none.json does not exist"),
    ],
)
def test_what_only_the_whole_can_tell_has_its_place_too(tmp_path: Path, text: str, told: str) -> None:
    result = CliRunner().invoke(serve, ["--config", str(written(tmp_path, text)), "--port", "0"])
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert told in result.output


def test_the_example_is_right_and_says_what_the_schema_says() -> None:
    config = ConfigFile(EXAMPLE).read()
    assert len(config.models) >= 2
    replica = next(iter(config.models.values())).replicas[0]
    assert replica.folder is None or replica.folder.is_relative_to(EXAMPLE.parent)
    schema = json.loads(CliRunner().invoke(serve, ["--config-schema"]).output)
    validator = jsonschema_rs.validator_for(schema)
    example = yaml.safe_load(EXAMPLE.read_text())
    assert validator.is_valid(example)
    assert not validator.is_valid({**example, "prot": 1})
    assert not validator.is_valid({**example, "settings": {"max_images": 0}})


HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def test_what_may_be_a_default_may_be_in_a_request() -> None:
    for name, field in SamplingConfig.model_fields.items():
        for bound in field.metadata:
            for value in (getattr(bound, "ge", None), getattr(bound, "le", None)):
                if value is not None:
                    validate(ChatRequest, {**HELLO, name: value})
            if hasattr(bound, "gt"):
                with pytest.raises(ApiError):
                    validate(ChatRequest, {**HELLO, name: bound.gt})


def test_options_win_over_the_file(tmp_path: Path) -> None:
    config = ConfigFile(written(tmp_path, URL + "port: 1\nsettings: {max_images: 3, image_hosts: [a.example]}")).read()
    changed = config.changed({"port": 2}, {"max_waiting": 7})
    assert (changed.port, changed.limits.max_waiting, changed.limits.max_images) == (2, 7, 3)
    assert changed.limits.image_hosts == ("a.example",)
    assert isinstance(changed, Config)


def replicas(engine: Process, name: str = "fake") -> list[dict[str, str]]:
    return [{"url": engine.url + "/v1", "model": name, "api_key_env": "FAKE_ENGINE_KEY"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path, Process]]:
    """A gateway with a file, the file, and the engine behind both its models."""
    path = tmp_path_factory.mktemp("config") / "gateway.yaml"
    with fake_engine(LENSMITH_ENGINE_KEY="secret") as engine:
        models = {
            "plain": {"replicas": replicas(engine)},
            "warm": {
                "replicas": replicas(engine),
                "aliases": ["gpt-4o"],
                "sampling": {"temperature": 0.5, "max_tokens": 9},
            },
        }
        path.write_text(json.dumps({"models": models}))
        with lensmith_serve("--config", str(path), FAKE_ENGINE_KEY="secret") as gateway:
            gateway.wait_until("/ready", 200)
            yield gateway, path, engine


def seen(gateway: Process, model: str, **fields: object) -> dict[str, object]:
    """The body that the engine got."""
    answer = httpx.post(gateway.url + CHAT, json={"model": model, "messages": ask("echo"), **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, object] = json.loads(answer.json()["choices"][0]["message"]["content"])["body"]
    return body


def test_models_and_aliases_are_listed_and_asked_for_by_the_engines_name(served: tuple[Process, Path, Process]) -> None:
    gateway = served[0]
    listed = [model["id"] for model in httpx.get(gateway.url + "/v1/models").json()["data"]]
    assert listed == ["plain", "warm", "gpt-4o"]
    assert httpx.get(gateway.url + "/v1/models/gpt-4o").status_code == 200
    for name in listed:
        assert seen(gateway, name)["model"] == "fake"
    assert gateway.metric("lensmith_requests_total", model="warm", status="200") == 2, "an alias is no label of its own"
    assert list(httpx.get(gateway.url + "/ready").json()["models"]) == ["plain", "warm"]


def test_sampling_defaults_count_only_where_the_request_is_silent(served: tuple[Process, Path, Process]) -> None:
    gateway = served[0]
    silent = seen(gateway, "warm", temperature=None)
    assert (silent["temperature"], silent["max_tokens"]) == (0.5, 9)
    told = seen(gateway, "gpt-4o", temperature=0, max_completion_tokens=3)
    assert (told["temperature"], told["max_completion_tokens"], "max_tokens" in told) == (0, 3, False)
    assert "temperature" not in seen(gateway, "plain")


def test_a_reload_drops_nothing_and_a_broken_file_changes_nothing(served: tuple[Process, Path, Process]) -> None:
    gateway, path, engine = served
    before = json.loads(path.read_text())

    def reload(text: str, says: str) -> None:
        told = gateway.log().count(says)
        path.write_text(text)
        gateway.process.send_signal(signal.SIGHUP)
        until(says, lambda: gateway.log().count(says) > told)

    def names() -> list[str]:
        return [model["id"] for model in httpx.get(gateway.url + "/v1/models").json()["data"]]

    with fake_engine("--served-model-name", "other", LENSMITH_ENGINE_KEY="secret") as another:
        models = {"plain": before["models"]["plain"], "new": {"replicas": replicas(another, "other")}}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            post = [pool.submit(httpx.post, gateway.url + CHAT, timeout=30, json=body) for body in (
                {"model": "warm", "messages": ask("count 20 0.1"), "stream": True},
                {"model": "warm", "messages": ask("slow 2")},
                {"model": "plain", "messages": ask("slow 2")},
            )]  # fmt: skip
            until("all are at work", lambda: httpx.get(engine.url + "/stats").json()["running"] == 3)
            reload(json.dumps({"models": models, "settings": {"max_images": 1}}), "The configuration was reloaded")
            assert names() == ["plain", "new"]
            asked = {"model": "warm", "messages": ask("hi")}
            assert envelope(httpx.post(gateway.url + CHAT, json=asked), 404)["code"] == "model_not_found"
            answers = [answer.result() for answer in post]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert answers[0].text.endswith("data: [DONE]\n\n")
        assert seen(gateway, "new")["model"] == "other"
        until("only the new ones are counted", lambda: gateway.metric("lensmith_requests_running", model="plain") == 0)

        reload("models:\n  plain:\n    replcas: []\n", "gateway.yaml:3:5: unknown key 'replcas'")
        reload("models: {a: {replicas: [{folder: none}]}}", "gateway.yaml:1:34: ")
        assert names() == ["plain", "new"]
        assert seen(gateway, "plain")["model"] == "fake"
        reload(json.dumps(before), "The configuration was reloaded: plain, warm, gpt-4o")
    assert seen(gateway, "warm")["temperature"] == 0.5
    assert "Traceback" not in gateway.log()


def test_it_drains_before_it_ends(tmp_path: Path) -> None:
    """In-flight streams end, new requests are refused, /ready tells whoever sends them."""
    with fake_engine() as engine, lensmith_serve("--engine", engine.url, "--drain-seconds", "20") as gateway:
        gateway.wait_until("/ready", 200)
        body = {"model": "fake", "messages": ask("count 20 0.1"), "stream": True}
        with httpx.stream("POST", gateway.url + CHAT, json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            next(lines)
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.wait_until("/ready", 503).json()["reason"] == "The gateway is shutting down."
            refused = httpx.post(gateway.url + CHAT, json=body)
            assert envelope(refused, 503)["code"] == "shutdown"
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["connection"] == "close"
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert gateway.process.wait(20) == 0


def test_it_serves_for_a_while_before_it_drains_if_balancers_learn_of_it_late() -> None:
    with fake_engine() as engine, lensmith_serve("--engine", engine.url, "--drain-pause", "3") as gateway:
        gateway.wait_until("/ready", 200)
        body = {"model": "fake", "messages": ask("count 2")}
        gateway.process.send_signal(signal.SIGTERM)
        gateway.wait_until("/ready", 503)
        assert httpx.post(gateway.url + CHAT, json=body).status_code == 200
        assert gateway.process.wait(20) == 0


def test_a_second_signal_ends_the_pause() -> None:
    with fake_engine() as engine, lensmith_serve("--engine", engine.url, "--drain-pause", "600") as gateway:
        gateway.wait_until("/ready", 200)
        gateway.process.send_signal(signal.SIGTERM)
        gateway.wait_until("/ready", 503)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(20) == 0


def test_a_stream_that_outlasts_the_drain_ends_with_an_error(tmp_path: Path) -> None:
    with fake_engine() as engine, lensmith_serve("--engine", engine.url, "--drain-seconds", "0.5") as gateway:
        gateway.wait_until("/ready", 200)
        body = {"model": "fake", "messages": ask("count 300 0.1"), "stream": True}
        with httpx.stream("POST", gateway.url + CHAT, json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            next(lines)
            gateway.process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutdown"
        assert gateway.process.wait(20) == 0
