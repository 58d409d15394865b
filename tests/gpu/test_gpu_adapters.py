"""Adapters in the real LMDeploy: what it answers with one is what transformers and PEFT answer with it."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.gateway.processes import Process, lensmith_serve
from tests.support.gpu_server import ENGINE, MODEL, wait_ready

pytestmark = pytest.mark.skipif(
    ENGINE != "lmdeploy", reason="tests/gateway/embedded/test_adapters.py has the embedded engine"
)
QUESTION = "Describe the picture."
PICTURES, TOKENS = 12, 8
NEAR_TIE = 0.1  # nats between the likeliest two tokens: rounding to bfloat16 decides, as in `lensmith verify`
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def pictures() -> list[Image.Image]:
    from examples import shapes

    rng = random.Random(5)
    return [shapes.render(shapes.sample_scene(rng, 3), 192, rng) for _ in range(PICTURES)]


def make_adapter(path: Path, strength: float) -> Path:
    """Random matrices on every linear of the language model, saved by PEFT; strength 0 changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32)
    targets = rf".*language_model\.layers\.\d+\.\w+\.({'|'.join(LINEARS)})"
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, use_rslora=True))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * strength)
    model.save_pretrained(path)
    return path


@dataclass(frozen=True)
class Answer:
    """An answer's tokens as text; margins: how far ahead of the second each was, in nats, or [] if not known."""

    tokens: list[str]
    margins: list[float]


def expected(adapter: Path | None) -> list[Answer]:
    """Greedy answers of transformers, with PEFT's own adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(MODEL)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.bfloat16).to(device)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    answers = []
    for picture in pictures():
        content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            made = model.generate(
                **inputs, do_sample=False, max_new_tokens=TOKENS, return_dict_in_generate=True, output_logits=True
            )
        tops = [logits[0].float().topk(2).values for logits in made.logits]
        ids = made.sequences[0, inputs["input_ids"].shape[1] :]
        answers.append(Answer([processor.decode([i]) for i in ids], [float(top[0] - top[1]) for top in tops]))
    return answers


def served_answers(gateway: Process, model: str) -> list[Answer]:
    answers = []
    for picture in pictures():
        file = io.BytesIO()
        picture.save(file, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": QUESTION}]
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        fields = {"temperature": 0, "max_tokens": TOKENS, "logprobs": True}
        answer = httpx.post(gateway.url + "/v1/chat/completions", json={**body, **fields}, timeout=120)
        assert answer.status_code == 200, answer.text
        tokens = answer.json()["choices"][0]["logprobs"]["content"]
        answers.append(Answer([token["token"] for token in tokens], []))
    return answers


def first_difference(one: Answer, other: Answer) -> int | None:
    """Where the answers part; an end-of-turn token, which only one of the two may show, is no difference."""
    pairs = zip(one.tokens, other.tokens, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), None)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(base / name, strength) for name, strength in (("strong", 0.1), ("nothing", 0.0))}


@pytest.fixture(scope="module")
def gateway(adapters: dict[str, Path]) -> Iterator[Process]:
    options = [word for name, path in adapters.items() for word in ("--adapters", f"{name}={path}")]
    with lensmith_serve(str(MODEL), "--engine", "lmdeploy", "--model-name", "model", *options) as started:
        wait_ready(started)
        yield started


def test_the_adapter_that_changes_nothing_is_not_listed(gateway: Process) -> None:
    listed = [model["id"] for model in httpx.get(gateway.url + "/v1/models").json()["data"]]
    assert listed == ["model", "strong"], gateway.log()[-3000:]


def test_answers_are_those_of_peft(gateway: Process, adapters: dict[str, Path]) -> None:
    own, tuned = expected(None), expected(adapters["strong"])
    changed = sum(first_difference(a, b) is not None for a, b in zip(own, tuned, strict=True))
    assert changed >= PICTURES - 2, "the adapter should matter"
    for model, wanted in (("model", own), ("strong", tuned)):
        places = [first_difference(a, b) for a, b in zip(wanted, served_answers(gateway, model), strict=True)]
        parted = [(n, at) for n, at in enumerate(places) if at is not None]
        margins = {n: wanted[n].margins[at] for n, at in parted}
        assert all(margin < NEAR_TIE for margin in margins.values()), (model, margins)
        assert len(parted) <= PICTURES // 2, (model, margins)
