"""Clients that people use, through a real gateway: what each makes of answers, streams, images, tools and failures.

Ollama's own client is in test_ollama.py, OpenAI's Python client in every other file.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams

from gateway.api.responses import requests as responses
from gateway.api.unsupported import NOWHERE, NOWHERE_IN_TEXT
from gateway.contract.requests import ChatRequest, CompletionRequest
from tests.support.gateway.javascript import run_javascript
from tests.support.gateway.processes import Process
from tests.support.gateway.requests import ask, picture

WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


# --- openai's own types, strictly


def chunks(text: str) -> list[dict[str, Any]]:
    events = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


@pytest.mark.parametrize("fields", [{"messages": ask("count 3")}, {"messages": ask("tools"), "tools": []}])
def test_every_answer_passes_openais_types(post: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"model": "fake", **fields}
    if "tools" in body:
        body["tools"] = [{"type": "function", "function": WEATHER}]
    ChatCompletion.model_validate(post.post("/v1/chat/completions", json=body).json())
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in chunks(post.post("/v1/chat/completions", json=body).text):
        ChatCompletionChunk.model_validate(chunk)


def test_text_completions_and_models_pass_openais_types(post: httpx.Client) -> None:
    Completion.model_validate(post.post("/v1/completions", json={"model": "fake", "prompt": "count 3"}).json())
    for model in post.get("/v1/models").json()["data"]:
        Model.model_validate(model)


# What cannot change an answer is passed on unchecked; how much to reason is the engine's own business.
PASSED_ON = {
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
}


@pytest.mark.parametrize(
    ("documented", "known"),
    [
        (ChatParams, {*ChatRequest.model_fields, *NOWHERE, *PASSED_ON}),
        (TextParams, {*CompletionRequest.model_fields, *NOWHERE_IN_TEXT}),
        (ResponseParams, set(responses.FIELDS)),
    ],
)
def test_every_field_that_openai_documents_is_checked_or_refused(documented: type, known: set[str]) -> None:
    assert set(documented.__annotations__) - known == set()


def test_a_stream_keeps_to_the_form_that_clients_need(post: httpx.Client) -> None:
    body = {"model": "fake", "messages": ask("count 3"), "stream": True, "stream_options": {"include_usage": True}}
    *parts, usage = chunks(post.post("/v1/chat/completions", json=body).text)
    assert len({(part["id"], part["model"]) for part in parts}) == 1
    assert [part["choices"][0]["index"] for part in parts] == [0] * len(parts)
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [part["choices"][0]["finish_reason"] is not None for part in parts] == [False] * (len(parts) - 1) + [True]
    assert usage["choices"] == []


# --- LangChain


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def langchain(gateway: Process, request: pytest.FixtureRequest) -> ChatOpenAI:
    fields: dict[str, Any] = {"max_retries": 0, "stream_usage": True, "use_responses_api": request.param}
    return ChatOpenAI(model="fake", base_url=gateway.url + "/v1", api_key="x", **fields)


def test_langchain_answers_and_streams(langchain: ChatOpenAI) -> None:
    whole = langchain.invoke("count 3")
    assert whole.text == "0 1 2 "
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] == 10
    parts = list(langchain.stream("count 3"))
    assert "".join(part.text for part in parts) == "0 1 2 "
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) == 3


def test_langchain_sends_images(langchain: ChatOpenAI) -> None:
    uri = picture()
    content = [{"type": "text", "text": "echo"}, {"type": "image_url", "image_url": {"url": uri}}]
    assert uri in langchain.invoke([HumanMessage(content)]).text


def test_langchain_calls_tools_and_reads_structures(langchain: ChatOpenAI) -> None:
    called = langchain.bind_tools([{"type": "function", "function": WEATHER}]).invoke("tools")
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("weather", {"city": "Oslo"})]
    schema = {"title": "Answer", "type": "object", "properties": {"body": {"type": "object"}}, "required": ["body"]}
    found = langchain.with_structured_output(schema, method="json_schema").invoke("echo")
    assert found["body"]["response_format"]["json_schema"]["name"] == "Answer"


def test_langchain_sees_failures(langchain: ChatOpenAI) -> None:
    with pytest.raises((openai.APIError, ValueError), match="broke off"):  # the latter for a failed response
        list(langchain.stream("fault mid-reset"))


# --- the `llm` command


def test_the_llm_command_asks_with_and_without_a_stream_and_sends_an_image(gateway: Process, tmp_path: Path) -> None:
    model = {"model_id": "served", "model_name": "fake", "api_base": gateway.url + "/v1", "vision": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    (tmp_path / "picture.png").write_bytes(base64.b64decode(picture().split(",")[1]))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "x"}

    def llm(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", "-m", "served", *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert llm("count 3").rstrip("\n") == "0 1 2 "
    assert llm("--no-stream", "count 3").rstrip("\n") == "0 1 2 "
    assert "data:image/png;base64," in llm("echo", "-a", str(tmp_path / "picture.png"))


# --- JavaScript


@pytest.fixture(scope="module")
def javascript(gateway: Process) -> dict[str, Any]:
    """What each client made of it; a check that raised has `failed`."""
    return run_javascript("clients.mjs", gateway.url)


NOT_FOUND = "There is no such model; GET /v1/models lists those there are."
BROKEN = "The engine broke off the connection."


def test_openais_javascript_client(javascript: dict[str, Any]) -> None:
    chat = javascript["openaiChat"]
    assert chat == {
        "text": "0 1 2 ",
        "requestId": True,
        "streamText": "0 1 2 ",
        "streamFinish": "stop",
        "streamTokens": 10,
        "image": True,
        "call": '{"city": "Oslo"}',
        "unknown": {"name": "NotFoundError", "status": 404, "code": "model_not_found", "message": f"404 {NOT_FOUND}"},
        "broken": {"name": "APIError", "status": None, "code": "engine_error", "message": BROKEN},
    }
    assert javascript["openaiResponses"] == {
        "text": "0 1 2 ",
        "tokens": 10,
        "last": "response.completed",
        "finalText": "0 1 2 ",
        "image": True,
        "broken": {"name": "APIError", "status": None, "code": "engine_error", "message": BROKEN},
    }
    others = javascript["openaiOthers"]
    assert (others["text"], others["models"]) == ("0 1 2 ", ["fake"])
    assert others["unknownPath"]["code"] == "not_found"


@pytest.mark.parametrize("api", ["aiSdkCompatible", "aiSdkOpenaiChat", "aiSdkOpenaiResponses"])
def test_vercels_ai_sdk(javascript: dict[str, Any], api: str) -> None:
    found = javascript[api]
    assert found.pop("refused")["status"] == 429
    calls = [["weather", {"city": "Oslo"}]]
    assert found == {
        "text": "0 1 2 ",
        "finish": "stop",
        "tokens": 10,
        "pieces": ["0 ", "1 ", "2 "],
        "streamFinish": "stop",
        "streamTokens": 10,
        "image": True,
        "calls": calls,
        "streamCalls": calls,
        "object": "object",
        "brokenIsSeen": True,
    }


def test_ollamas_javascript_client(javascript: dict[str, Any]) -> None:
    assert javascript["ollama"] == {
        "text": "0 1 2 ",
        "reason": "stop",
        "pieces": ["0 ", "1 ", "2 ", ""],
        "image": True,
        "call": {"city": "Oslo"},
        "models": ["fake"],
        "capabilities": ["completion", "vision", "tools"],
        "unknown": {"name": "ResponseError", "status": 404, "code": None, "message": NOT_FOUND},
        "broken": {"name": "Error", "status": None, "code": None, "message": BROKEN},
    }
