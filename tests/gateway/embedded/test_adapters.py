"""Adapters beside the base, in one process: who is asked for is who answers, whatever else runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel

from tests.support.gateway.embedded_process import (
    KEY,
    MODEL,
    EngineProcess,
    Reference,
    all_at_once,
    chat,
    for_processor,
    picture,
    question,
)
from tests.support.gateway.saying_adapter import saying_adapter
from tests.support.paths import ROOT, SHAPES_VL

WORD = "Ġtriangle"
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {name: saying_adapter(folder / name, token) for name, token in (("one", WORD), ("two", "Ġyellow"))}
    return made | {"weak": saying_adapter(folder / "weak", WORD, strength=2.0)}


@pytest.fixture(scope="module")
def served(adapters: dict[str, Path]) -> Iterator[httpx.Client]:
    process = EngineProcess(SHAPES_VL, "--adapters", *(f"{name}={path}" for name, path in adapters.items()))
    try:
        process.wait_until_ready()
        with httpx.Client(base_url=process.url, headers={"authorization": f"Bearer {KEY}"}, timeout=120) as client:
            yield client
    finally:
        process.close()


def test_each_name_is_listed_and_answers_with_its_own_weights(served: httpx.Client) -> None:
    assert [model["id"] for model in served.get("/v1/models").json()["data"]] == [MODEL, "one", "two", "weak"]
    asked = question("What is this?", picture(1))
    answers = {name: chat(served, asked, model=name, **GREEDY) for name in (MODEL, "one", "two")}
    texts = {name: answer["choices"][0]["message"]["content"] for name, answer in answers.items()}
    assert texts["one"].split() == ["triangle"] * 8
    assert texts["two"].split() == ["yellow"] * 8
    assert texts[MODEL].split() not in (["triangle"] * 8, ["yellow"] * 8)
    assert {name: answer["model"] for name, answer in answers.items()} == {name: name for name in answers}
    fingerprints = [answer["system_fingerprint"] for answer in answers.values()]
    assert fingerprints[0] == "shapes-vl"
    assert len(set(fingerprints)) == 3
    assert all(one.startswith("shapes-vl+") for one in fingerprints[1:])


def test_requests_for_several_at_once_are_answered_as_alone(served: httpx.Client) -> None:
    requests = [
        {"messages": question(f"What is this? {number}", picture(number)), "model": name, **GREEDY}
        for number in range(3)
        for name in (MODEL, "one", "two")
    ]
    alone = [chat(served, **request)["choices"][0]["message"]["content"] for request in requests]
    together = [answer["choices"][0]["message"]["content"] for answer in all_at_once(served, requests)]
    assert together == alone


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_answers_as_peft_answers_with_it(served: httpx.Client, adapters: dict[str, Path]) -> None:
    reference = Reference(SHAPES_VL)
    features = reference.features(for_processor("What is this?", picture(2)))

    def likeliest(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return model(**features).logits[0, -1].float().log_softmax(-1).max().item()

    plain = likeliest(reference.model)
    expected = likeliest(PeftModel.from_pretrained(reference.model, adapters["weak"]))
    assert abs(expected - plain) > 0.001
    asked = question("What is this?", picture(2))
    for name, value in ((MODEL, plain), ("weak", expected)):
        answer = chat(served, asked, model=name, temperature=0, max_tokens=1, logprobs=True)
        assert answer["choices"][0]["logprobs"]["content"][0]["logprob"] == pytest.approx(value, abs=1e-5)


def test_an_adapter_that_would_not_be_applied_completely_ends_it_with_a_sentence(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    path = saying_adapter(tmp_path / "other", WORD)
    config = path / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 8', '"r": 8, "use_dora": true'))
    command = [sys.executable, "-m", "gateway.embedded", str(SHAPES_VL), "--port", "0", "--adapters", f"x={path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "lora_A of model.language_model" in ended.stderr or "but not its counterpart" in ended.stderr
    assert "Traceback" not in ended.stderr
