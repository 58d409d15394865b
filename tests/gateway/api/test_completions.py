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


def test_several_prompts_are_answered_together_as_openai_numbers_them(client: openai.OpenAI) -> None:
    prompts = ["count 3", "count 1", "count 2"]
    whole = client.completions.create(model="fake", prompt=prompts)
    assert [(choice.index, choice.text) for choice in whole.choices] == [(0, "0 1 2 "), (1, "0 "), (2, "0 1 ")]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (21, 6)
    two_each = client.completions.create(model="fake", prompt=prompts[:2], n=2)
    assert [choice.index for choice in two_each.choices] == [0, 2]  # the fake engine gives one answer whatever n is

    options = {"include_usage": True}
    *chunks, last = client.completions.create(model="fake", prompt=prompts, stream=True, stream_options=options)
    for at, choice in enumerate(whole.choices):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == at]
        assert "".join(piece.text for piece in mine) == choice.text
        assert [piece.finish_reason for piece in mine] == [None] * (len(mine) - 1) + ["length"]
    assert (last.choices, last.usage.total_tokens) == ([], 27)
    assert len({chunk.id for chunk in (*chunks, last)}) == 1
    uncounted = list(client.completions.create(model="fake", prompt=prompts, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in uncounted)


def test_each_of_several_prompts_is_cut_at_the_stop_string_by_itself(lmdeploy: Process) -> None:
    fields: dict[str, Any] = {"model": "fake", "prompt": ["count 6", "count 9", "count 2"], "stop": "3 4"}
    with openai.OpenAI(base_url=lmdeploy.url + "/v1", api_key="x", max_retries=0) as client:
        texts = [choice.text for choice in client.completions.create(**fields).choices]
        streamed = [""] * 3
        for chunk in client.completions.create(**fields, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == streamed == ["0 1 2 ", "0 1 2 ", "0 1 "]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_fails_fails_the_list(gateway: Process, post: httpx.Client, stream: bool) -> None:
    body = {"model": "fake", "prompt": ["count 2", "fault flat", "count 2"], "stream": stream}
    answer = post.post(PATH, json=body)
    if answer.status_code == 200:  # the others' first events were sooner
        assert json.loads(answer.text.split("data: ")[-1])["error"]["message"].startswith("prompt exceeds")
        assert "[DONE]" not in answer.text
    else:
        assert envelope(answer, 400)["message"].startswith("prompt exceeds")
    assert gateway.metric("lensmith_requests_running", model="fake") == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
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
