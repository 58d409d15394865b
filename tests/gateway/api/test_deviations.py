"""Every client before every deviation of an engine: it gets its answer, or an error that names the engine's fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import ollama
import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.support.gateway.deviating_engine import DEVIATIONS, DeviatingEngine
from tests.support.gateway.javascript import run_javascript
from tests.support.gateway.processes import Process, lensmith_serve
from tests.support.gateway.requests import ask

Answer = tuple[str, int]  # text and tokens
MESSAGES: Any = ask("hi")


@pytest.fixture(scope="module")
def served() -> Iterator[Process]:
    with DeviatingEngine() as engine, lensmith_serve("--engine", engine.url) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway


def openai_whole(url: str, model: str) -> Answer:
    with openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
        answer = client.chat.completions.create(model=model, messages=MESSAGES)
    assert answer.choices[0].finish_reason == "stop"
    return answer.choices[0].message.content or "", answer.usage.total_tokens if answer.usage else 0


def openai_stream(url: str, model: str) -> Answer:
    with (
        openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client,
        client.chat.completions.stream(
            model=model, messages=MESSAGES, stream_options={"include_usage": True}
        ) as stream,
    ):
        answer = stream.get_final_completion()
    assert answer.choices[0].finish_reason == "stop"
    return answer.choices[0].message.content or "", answer.usage.total_tokens if answer.usage else 0


def anthropic_whole(url: str, model: str) -> Answer:
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client:
        answer = client.messages.create(model=model, max_tokens=9, messages=MESSAGES)
    return answer.content[0].text, answer.usage.input_tokens + answer.usage.output_tokens


def anthropic_stream(url: str, model: str) -> Answer:
    with (
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client,
        client.messages.stream(model=model, max_tokens=9, messages=MESSAGES) as stream,
    ):
        answer = stream.get_final_message()
    return answer.content[0].text, answer.usage.input_tokens + answer.usage.output_tokens


def ollama_whole(url: str, model: str) -> Answer:
    answer = ollama.Client(url).chat(model, MESSAGES)
    assert answer.done_reason == "stop"
    return answer.message.content or "", (answer.prompt_eval_count or 0) + (answer.eval_count or 0)


def ollama_stream(url: str, model: str) -> Answer:
    parts = list(ollama.Client(url).chat(model, MESSAGES, stream=True))
    tokens = (parts[-1].prompt_eval_count or 0) + (parts[-1].eval_count or 0)
    return "".join(part.message.content or "" for part in parts), tokens


def langchain(url: str, model: str) -> ChatOpenAI:
    fields: dict[str, Any] = {"max_retries": 0, "stream_usage": True}
    return ChatOpenAI(model=model, base_url=url + "/v1", api_key="x", **fields)


def langchain_whole(url: str, model: str) -> Answer:
    answer = langchain(url, model).invoke("hi")
    assert answer.response_metadata["finish_reason"] == "stop"
    return answer.text, answer.usage_metadata["total_tokens"] if answer.usage_metadata else 0


def langchain_stream(url: str, model: str) -> Answer:
    parts = list(langchain(url, model).stream("hi"))
    tokens = sum(part.usage_metadata["total_tokens"] for part in parts if part.usage_metadata)
    return "".join(part.text for part in parts), tokens


def llm_asked(url: str, model: str, stream: bool) -> Answer:
    from llm.default_plugins.openai_models import Chat

    known = Chat(model, model_name=model, api_base=url + "/v1")
    known.key = "x"
    answer = known.prompt("hi", stream=stream)
    text, usage = answer.text(), answer.usage()
    return text, (usage.input or 0) + (usage.output or 0)


def llm_whole(url: str, model: str) -> Answer:
    return llm_asked(url, model, stream=False)


def llm_stream(url: str, model: str) -> Answer:
    return llm_asked(url, model, stream=True)


PYTHON: tuple[Callable[[str, str], Answer], ...] = (
    *(openai_whole, openai_stream, anthropic_whole, anthropic_stream, ollama_whole, ollama_stream),
    *(langchain_whole, langchain_stream, llm_whole, llm_stream),
)


def right(deviation: str, streams: bool, seen: dict[str, Any]) -> str:
    """What is wrong with what a client saw; empty if nothing is."""
    wanted = DEVIATIONS[deviation]
    if wanted.fault and (streams or not wanted.streams_only):
        return "" if wanted.fault in seen.get("error", "") else f"{deviation}: no error '{wanted.fault}' but {seen}"
    counted = seen.get("tokens", 0) > 0 if deviation == "no-usage" else seen.get("tokens") == 9
    return "" if seen.get("text") == "Hello world" and counted else f"{deviation}: {seen}"


@pytest.mark.parametrize("client", PYTHON, ids=lambda client: str(client.__name__))
def test_python_clients(served: Process, client: Callable[[str, str], Answer]) -> None:
    def seen(deviation: str) -> dict[str, Any]:
        try:
            text, tokens = client(served.url, deviation)
        except Exception as error:
            return {"error": f"{error} {getattr(error, 'body', '')}"}
        return {"text": text, "tokens": tokens}

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(seen, DEVIATIONS)
        streams = client.__name__.endswith("stream")
        wrong = [right(deviation, streams, result) for deviation, result in zip(DEVIATIONS, results, strict=True)]
    assert [text for text in wrong if text] == []


def test_javascript_clients(served: Process) -> None:
    results = run_javascript("deviations.mjs", served.url)
    assert len(results) == 9
    wrong = []
    for name, seen in results.items():
        assert set(seen) == set(DEVIATIONS)
        found = [right(deviation, name.endswith("Stream"), result) for deviation, result in seen.items()]
        wrong += [f"{name}: {text}" for text in found if text]
    assert wrong == []
