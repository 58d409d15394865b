"""What a reasoning model thinks before its answer reaches the clients of every API, by their own names for it."""

from __future__ import annotations

from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.support.gateway.processes import Process
from tests.support.gateway.requests import ask

THOUGHT, TEXT = "Let me see.", "Hello wörld 🙂"


@pytest.mark.parametrize("stream", [False, True])
def test_openais_responses_have_a_reasoning_item(client: openai.OpenAI, stream: bool) -> None:
    response: Any
    if stream:
        with client.responses.stream(model="fake", input="think") as events:
            kinds = [event.type for event in events]
            response = events.get_final_response()
        assert kinds.count("response.reasoning_text.delta") == 2
        assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")
        assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 2
    else:
        response = client.responses.create(model="fake", input="think")
    reasoning, message = response.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert [part.text for part in reasoning.content] == [THOUGHT]
    assert message.type == "message"
    assert response.output_text == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_ollamas_messages_have_thinking(gateway: Process, stream: bool) -> None:
    with ollama.Client(host=gateway.url) as client:
        if stream:
            parts = list(client.chat(model="fake", messages=ask("think"), stream=True))
        else:
            parts = [client.chat(model="fake", messages=ask("think"))]
        answer = client.generate(model="fake", prompt="think")
    assert "".join(part.message.thinking or "" for part in parts) == THOUGHT
    assert "".join(part.message.content or "" for part in parts) == TEXT
    assert (answer.thinking, answer.response) == (THOUGHT, TEXT)


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_messages_have_a_thinking_block(gateway: Process, stream: bool) -> None:
    with anthropic.Anthropic(base_url=gateway.url, api_key="x", max_retries=0) as client:
        message: Any
        if stream:
            with client.messages.stream(model="fake", max_tokens=9, messages=ask("think")) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(model="fake", max_tokens=9, messages=ask("think"))
    thinking, text = message.content
    assert (thinking.type, text.type) == ("thinking", "text")
    assert (thinking.thinking, text.text) == (THOUGHT, TEXT)
