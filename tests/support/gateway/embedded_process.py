"""The engine as a real process, transformers as its reference, and requests to both."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.paths import ROOT

KEY = "test-key"
MODEL = "tiny"


class Reference:
    """transformers itself, without the engine."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer
        self._answers: dict[str, list[int]] = {}
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    def features(self, messages: list[dict[str, Any]]) -> Any:
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def generate(self, messages: list[dict[str, Any]], max_tokens: int, **settings: Any) -> list[int]:
        """Greedy token ids of the answer to messages in the processor's own form."""
        features = self.features(messages)
        ids = self.model.generate(**features, do_sample=False, max_new_tokens=max_tokens, **settings)
        answer: list[int] = ids[0, features["input_ids"].shape[1] :].tolist()
        return answer

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


class EngineProcess:
    """A real `python -m gateway.embedded` on a free port."""

    def __init__(self, folder: Path, *arguments: str, key: str | None = KEY) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LENSMITH_ENGINE_KEY": key or ""}
        command = [sys.executable, "-m", "gateway.embedded", str(folder), "--port", "0", "--served-model-name", MODEL]
        self.process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.first_health = httpx.get(f"{self.url}/health")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        while httpx.get(f"{self.url}/health").status_code != 200:
            assert self.process.poll() is None, "the engine ended while loading"
            assert time.monotonic() < deadline, "the engine did not load in 120 s"
            time.sleep(0.2)

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


def data_uri(image: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def picture(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    image = Image.new("RGB", (width, height), (40 * seed % 256, 90, 200))
    ImageDraw.Draw(image).ellipse((10, 10, 40 + seed, 50), fill=(250, 30 * seed % 256, 10))
    return image


def question(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    """Messages of one question, as the API takes them."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def for_processor(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    """The same messages, as transformers' processor takes them."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def chat(http: httpx.Client, messages: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, **settings})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def all_at_once(http: httpx.Client, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers to requests sent at the same time."""
    answers: list[dict[str, Any]] = [{}] * len(requests)

    def ask(i: int) -> None:
        answers[i] = chat(http, **requests[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def metrics(http: httpx.Client) -> dict[str, float]:
    """Sample name, with its `reason` or `le` label if it has one, -> value."""
    found = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            label = sample.labels.get("reason") or sample.labels.get("le")
            found[f"{sample.name}[{label}]" if label else sample.name] = sample.value
    return found


def wait_for(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.02)
