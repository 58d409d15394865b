"""Whether a model answers in Ollama as it does elsewhere: the same questions to both, and a test of the difference."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from modelfiles.hardware.python_child import module_command
from modelfiles.server.client import OllamaClient, OllamaError
from modelfiles.server.questions import Question

MAX_TOKENS = 128  # of an answer
START_SECONDS = 600
SIGNIFICANT = 0.05


class ReferenceServerError(Exception):
    """The server to compare with does not answer; one sentence."""


@dataclass(frozen=True)
class AnswerComparison:
    """Which of the same questions each side answered exactly (case and blanks around aside)."""

    there: list[bool]
    reference: list[bool]

    @property
    def p(self) -> float:
        """How likely at least so many answers are lost by chance, were both equally good (McNemar's exact test)."""
        lost = sum(r and not t for t, r in zip(self.there, self.reference, strict=True))
        won = sum(t and not r for t, r in zip(self.there, self.reference, strict=True))
        return sum(math.comb(lost + won, k) for k in range(lost, lost + won + 1)) / float(2 ** (lost + won))

    @property
    def worse(self) -> bool:
        return self.p < SIGNIFICANT


def exact_match(answer: str, label: str) -> bool:
    return answer.strip().casefold() == label.strip().casefold()


def ask_ollama(server: OllamaClient, model: str, question: Question) -> str:
    """The greedy answer. Raises OllamaError, for an empty reply too: it is no answer that could be judged."""
    options = {"temperature": 0, "seed": 0, "num_predict": MAX_TOKENS}
    answer = server.chat(model, question.ollama_messages(), options=options)
    message = answer.get("message")
    if not isinstance(message, dict) or not answer.get("prompt_eval_count"):
        raise OllamaError("the server's reply is empty: it has no message or no prompt_eval_count.")
    return str(message.get("content") or "")


class Reference:
    """The first model of an OpenAI API. Raises ReferenceServerError."""

    def __init__(self, url: str) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=600, trust_env=False)
        self.url = url
        self.model = str(self._json("GET", "/models")["data"][0]["id"])

    def ask(self, question: Question) -> str:
        body = {
            "model": self.model,
            "messages": question.openai_messages(),
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        return str(self._json("POST", "/chat/completions", body)["choices"][0]["message"]["content"] or "")

    def _json(self, method: str, path: str, body: object = None) -> Any:
        try:
            response = self._http.request(method, path, json=body)
            response.raise_for_status()
            value = response.json()
            if not isinstance(value, dict) or not (value.get("data") or value.get("choices")):
                raise ValueError("neither models nor an answer")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ReferenceServerError(f"{self.url}{path} is no OpenAI API that answers: {error}.") from None
        return value


@contextmanager
def gateway_reference(folder: Path) -> Iterator[Reference]:
    """The model of `folder` in the gateway's own engine: `lensmith serve` as long as it is needed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*module_command("lensmith"), "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with httpx.Client(trust_env=False) as http:
                    if http.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                        break
            except httpx.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise ReferenceServerError(
                    f"`lensmith serve {folder}` did not start; run it to see why, or give --reference URL."
                )
            time.sleep(0.5)
        yield Reference(f"http://127.0.0.1:{port}/v1")
    finally:
        process.terminate()
        process.wait()
