"""`lensmith verify`: an engine with other files than the folder's is found out, one with the same is not."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from gateway.verify.cases import Case, cases
from gateway.verify.cli import verify
from gateway.verify.compare import EngineComparison, compare_engines
from gateway.verify.greedy import GreedyAnswer, Token, read_answer
from gateway.verify.record import record_results
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process, until
from tests.support.paths import ROOT, SHAPES_VL, SUPPORT


def change(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def another_template(folder: Path) -> None:
    """Another role's name: the prompt has as many tokens as before."""
    for file in ("chat_template.json", "tokenizer_config.json"):
        change(folder, file, "<|im_start|>assistant", "<|im_start|>user")


def another_size(folder: Path) -> None:
    change(folder, "preprocessor_config.json", '"longest_edge": 65536', '"longest_edge": 16384')


def another_rope(folder: Path) -> None:
    change(folder, "config.json", '"rope_theta": 5000000', '"rope_theta": 10000')


def nothing(folder: Path) -> None:
    pass


CHANGES = {"same": nothing, "template": another_template, "size": another_size, "rope": another_rope}


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict]]:
    """What one run says of an engine for each change."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("the embedded engine needs: pip install 'lensmith[cpu]'")
    work = tmp_path_factory.mktemp("verify")
    engines = {}
    for name, broken in CHANGES.items():
        shutil.copytree(SHAPES_VL, work / name)
        broken(work / name)
        engines[str(work / name)] = free_port()
    pairs = [str(part) for pair in engines.items() for part in pair]
    urls = [f"http://127.0.0.1:{port}" for port in engines.values()]
    argv = [sys.executable, "-m", "lensmith", "verify", str(SHAPES_VL), "--prompts", "9", "--max-tokens", "8"]
    argv += [part for url in urls for part in ("--engine", url)]
    many = [sys.executable, str(SUPPORT / "gateway" / "embedded_many.py"), *pairs]
    with Process(many, list(engines.values())[-1], OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1") as process:
        for url in urls:
            until(f"the engine is ready: {process.log()}", lambda url=url: process.process.poll() or is_ready(url))
        done = subprocess.run(
            [*argv, "--json", str(work / "result.json")], cwd=ROOT, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 1, done.stderr
        assert "not kept: the folder has no lensmith.json" in done.stdout
        results = json.loads((work / "result.json").read_text())["verified"]
        yield dict(zip(CHANGES, results, strict=True))


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False


def failed(result: dict) -> set[str]:
    return {check["name"] for check in result["checks"] if not check["ok"]}


def test_the_same_files_give_the_same_answers(verified: dict[str, dict]) -> None:
    assert failed(verified["same"]) == set()
    assert verified["same"]["ok"]
    assert "transformers" in verified["same"]["versions"]


def test_another_chat_template_of_the_same_length_is_found_out(verified: dict[str, dict]) -> None:
    assert failed(verified["template"]) & {"greedy tokens", "log-probabilities"}


def test_another_image_size_is_found_out_by_the_prompt_tokens(verified: dict[str, dict]) -> None:
    assert "prompt tokens" in failed(verified["size"])


def test_another_position_encoding_is_found_out(verified: dict[str, dict]) -> None:
    assert failed(verified["rope"]) & {"greedy tokens", "log-probabilities"}


def answer(*tokens: tuple[str, float, dict[str, float]], prompt: int = 10) -> GreedyAnswer:
    made = tuple(Token(t.encode(), p, {k.encode(): v for k, v in top.items()}) for t, p, top in tokens)
    return GreedyAnswer("".join(t for t, _, _ in tokens), prompt, made)


ONE = [Case("a", [])]
RED = ("red", -0.7, {"red": -0.7, "blue": -0.75})


def one(reference: GreedyAnswer, seen: GreedyAnswer, case: Case = ONE[0]) -> EngineComparison:
    return compare_engines("e", [case], [reference], [seen], 0.1)


def test_a_tie_is_no_difference_and_a_clear_choice_is() -> None:
    tie = one(answer(RED), answer(("blue", -0.7, {})))
    assert (tie.ok, tie.tied, tie.same_answers) == (True, 1, 0)
    clear = one(answer(("red", -0.1, {"red": -0.1, "blue": -2.4})), answer(("blue", -0.7, {})))
    assert not clear.ok
    assert clear.problems == ["a: token 1 is 'blue', but 'red' for the reference, 2.30 nats likelier there."]


def test_log_probabilities_must_agree_on_average() -> None:
    assert one(answer(RED), answer(("red", -0.75, {}))).ok
    far = one(answer(RED), answer(("red", -0.9, {})))
    assert [check.name for check in far.checks if not check.ok] == ["log-probabilities"]


def test_other_prompt_tokens_other_ends_and_errors_are_problems() -> None:
    assert "11 tokens, but 10" in one(answer(RED), answer(RED, prompt=11)).problems[0]
    assert "ends later" in one(answer(RED), answer(RED, (" shape", -0.1, {}))).problems[0]
    assert one(answer(RED), GreedyAnswer(error="HTTP 500: no")).problems == ["a: HTTP 500: no."]
    assert not one(GreedyAnswer(error="HTTP 500: no"), answer(RED)).ok


def test_an_engine_without_log_probabilities_is_judged_by_its_text() -> None:
    assert one(answer(RED), GreedyAnswer("red", 10)).ok
    assert not one(answer(RED), GreedyAnswer("blue", 10)).ok


def test_a_picture_too_large_is_judged_by_its_tokens_only() -> None:
    large = Case("large", [], shrunk=True)
    assert one(answer(RED), answer(("blue", -9.0, {})), large).ok
    assert not one(answer(RED), answer(RED, prompt=11), large).ok


def test_a_listed_end_token_is_not_of_the_text() -> None:
    entries = [{"token": "Rot", "bytes": [82, 111, 116], "logprob": -0.1, "top_logprobs": []}]
    entries.append({"token": "<|im_end|>", "bytes": list(b"<|im_end|>"), "logprob": -0.2, "top_logprobs": []})
    got = read_answer({"choices": [{"message": {"content": "Rot"}, "logprobs": {"content": entries}}], "usage": {}})
    assert [token.text for token in got.tokens or ()] == [b"Rot"]


def test_cases_are_the_same_every_time_and_of_many_kinds() -> None:
    folder = ModelFolder.open(SHAPES_VL)
    made = cases(folder, 30, ())
    assert made == cases(folder, 30, ())
    assert sum("image_url" in json.dumps(case.messages) for case in made) == 30
    assert any(case.shrunk for case in made)
    assert len({json.dumps(case.messages) for case in made}) == len(made)


def test_a_result_is_kept_once_for_each_engine_and_does_not_make_another_model(tmp_path: Path) -> None:
    shutil.copytree(SHAPES_VL, tmp_path / "model")
    folder = ModelFolder.open(tmp_path / "model")
    assert not record_results(folder, [{"engine": "a"}])
    assert not (folder.path / "lensmith.json").exists()
    (folder.path / "lensmith.json").write_text(json.dumps({"made": "now"}, indent=2) + "\n")
    before = folder.fingerprint()
    assert record_results(folder, [{"engine": "a", "ok": False}, {"engine": "b", "ok": True}])
    assert record_results(folder, [{"engine": "a", "ok": True}])
    kept = json.loads((folder.path / "lensmith.json").read_text())
    assert kept == {"made": "now", "verified": [{"engine": "b", "ok": True}, {"engine": "a", "ok": True}]}
    assert folder.fingerprint() == before


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["/nowhere", "--engine", "lmdeploy"], "/nowhere does not exist"),
        ([str(SHAPES_VL), "--engine", "ollama"], "'ollama' is not transformers, lmdeploy or a URL"),
        ([str(SHAPES_VL)], "Missing option '--engine'"),
        ([str(SHAPES_VL), "--engine", "http://"], "http:// is not the address of an engine"),
        ([str(SHAPES_VL), "--engine", "http://127.0.0.1:9/v1"], "nothing answers at http://127.0.0.1:9"),
        ([str(SHAPES_VL), "--engine", "transformers", "--json", "/nowhere/x.json"], "The folder of /nowhere/x.json"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], sentence: str
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    done = CliRunner().invoke(verify, argv)
    assert done.exit_code in (1, 2)
    assert sentence in " ".join(done.output.split())
    assert isinstance(done.exception, SystemExit)
