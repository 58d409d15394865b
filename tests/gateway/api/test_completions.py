"""Text completions and token counts through a real gateway to a fake engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.gateway.processes import Process
from tests.support.gateway.requests import ask, envelope, picture
from tests.support.gateway.supervised import serve_fake

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def lmdeploy() -> Iterator[Process]:
    """In front of an engine with LMDeploy's row."""
    with serve_fake() as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway


def test_a_text_completion_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="fake", prompt="count 4", max_tokens=4)
    assert whole.object == "text_completion"
    assert whole.choices[0].text == "0 1 2 3 "
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 11
    chunks = list(client.completions.create(model="fake", prompt="count 4", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "0 1 2 3 "
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "length"]
    options = {"include_usage": True}
    chunks = list(client.completions.create(model="fake", prompt="count 4", stream=True, stream_options=options))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4


def test_the_prompt_goes_on_as_it_is_and_16_tokens_are_the_default(client: openai.OpenAI) -> None:
    prompt = "echo <|im_start|>user\n"
    seen = json.loads(client.completions.create(model="fake", prompt=[prompt]).choices[0].text)["body"]
    assert seen == {"model": "fake", "prompt": prompt, "max_tokens": 16}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"stream_options": {}}, "stream_options"),
        ({"model": "other"}, "model"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named(post: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = post.post(PATH, json={"model": "fake", "prompt": "x", **fields})
    assert envelope(answer, 404 if param == "model" else 400)["param"] == param


def test_what_lmdeploy_drops_in_text_completions_is_refused_or_settled(lmdeploy: Process) -> None:
    for field, value in {"n": 2, "logprobs": 1, "presence_penalty": 1, "logit_bias": {"3": 1}}.items():
        answer = httpx.post(lmdeploy.url + PATH, json={"model": "fake", "prompt": "x", field: value})
        assert envelope(answer, 400)["param"] == field
    fields = {"model": "fake", "prompt": "count 6", "stop": ["3 4"], "n": 1}
    with openai.OpenAI(base_url=lmdeploy.url + "/v1", api_key="x", max_retries=0) as client:
        whole = client.completions.create(**fields)
        chunks = list(client.completions.create(**fields, stream=True))
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("0 1 2 ", "stop")
    assert "".join(chunk.choices[0].text for chunk in chunks) == "0 1 2 "
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_tokens_are_counted_by_any_engine(post: httpx.Client) -> None:
    parts = [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": "?"}]
    for fields in ({"prompt": "count 3"}, {"messages": [{"role": "user", "content": parts}]}):
        answer = post.post("/tokenize", json={"model": "fake", **fields})
        assert answer.json() == {"count": 7, "max_model_len": None, "tokens": None}


def test_lmdeploy_tells_the_tokens_of_a_text(lmdeploy: Process) -> None:
    answer = httpx.post(lmdeploy.url + "/tokenize", json={"model": "fake", "prompt": "hi"})
    assert answer.json() == {"count": 2, "max_model_len": None, "tokens": [104, 105]}
    answer = httpx.post(lmdeploy.url + "/tokenize", json={"model": "fake", "messages": ask("hi")})
    assert answer.json() == {"count": 7, "max_model_len": None, "tokens": None}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "messages": ask("x")}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
        ({"prompt": 3}, "prompt"),
    ],
)
def test_a_mistake_in_a_token_count_is_named(post: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert envelope(post.post("/tokenize", json={"model": "fake", **fields}), 400)["param"] == param
