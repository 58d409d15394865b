"""The official client, the gateway and the real engine: what OpenAI's API promises holds, whatever the weights say."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.support.gateway.processes import Process, until
from tests.support.gpu_requests import ask, picture, question
from tests.support.gpu_server import wait_ready


def test_plain_and_streamed_answers_are_alike(client: openai.OpenAI) -> None:
    plain = ask(client, question(picture()))
    assert plain.choices[0].message.content
    chunks = list(ask(client, question(picture()), stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage
    finish = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finish[-1] == plain.choices[0].finish_reason


def test_an_image_costs_tokens_and_a_larger_one_more(client: openai.OpenAI) -> None:
    none, small, two = (
        ask(client, question(*images), max_tokens=1).usage.prompt_tokens
        for images in ([], [picture((128, 128))], [picture((128, 128)), picture((256, 256))])
    )
    assert none < small
    assert two - small >= small - none


def test_two_pictures_have_an_order(client: openai.OpenAI) -> None:
    red, blue = (picture(kind=kind) for kind in (0, 1))
    first, second = (
        ask(client, question(*images), max_tokens=1, logprobs=True, top_logprobs=5).choices[0].logprobs.content[0]
        for images in ([red, blue], [blue, red])
    )
    assert [entry.logprob for entry in first.top_logprobs] != [entry.logprob for entry in second.top_logprobs]


def test_the_length_limit_is_kept(client: openai.OpenAI) -> None:
    answer = ask(client, question(picture()), max_tokens=3)
    assert answer.usage.completion_tokens <= 3
    if answer.usage.completion_tokens == 3:
        assert answer.choices[0].finish_reason in ("length", "stop")


def test_log_probabilities_are_of_the_answers_tokens(client: openai.OpenAI) -> None:
    answer = ask(client, question(picture()), logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert entries
    assert all(entry.logprob <= 1e-3 and len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.logprob >= entry.top_logprobs[1].logprob - 1e-3 for entry in entries), "greedy takes the likeliest"
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    assert (
        b"".join(bytes(entry.bytes) for entry in entries)
        .decode("utf-8", "replace")
        .startswith(answer.choices[0].message.content.rstrip("\ufffd"))
    )


def test_a_text_completion_is_answered(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "model", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**fields)
    assert whole.usage.completion_tokens <= 8
    chunks = list(client.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_tokens_are_counted(served: Process, client: openai.OpenAI) -> None:
    counts = []
    for fields in ({"prompt": "Once upon a time"}, {"messages": question(picture())}):
        answer = httpx.post(served.url + "/tokenize", json={"model": "model", **fields}, timeout=60)
        assert answer.status_code == 200, answer.text
        counts.append(answer.json()["count"])
    text, chat = counts
    usage = client.completions.create(model="model", prompt="Once upon a time", max_tokens=1).usage
    assert text == usage.prompt_tokens
    assert chat == ask(client, question(picture()), max_tokens=1).usage.prompt_tokens


def test_responses_and_ollamas_chat_give_the_same_answer(served: Process, client: openai.OpenAI) -> None:
    text = ask(client, question(picture())).choices[0].message.content
    part = {"type": "input_image", "image_url": picture(), "detail": "auto"}
    content = [part, {"type": "input_text", "text": "Describe the picture."}]
    response = client.responses.create(
        model="model", input=[{"role": "user", "content": content}], temperature=0, max_output_tokens=12
    )
    assert response.output_text == text
    message = {"role": "user", "content": "Describe the picture.", "images": [picture().split(",")[1]]}
    options = {"temperature": 0, "num_predict": 12}
    body = {"model": "model", "messages": [message], "options": options, "stream": False}
    assert httpx.post(served.url + "/api/chat", json=body, timeout=60).json()["message"]["content"] == text


def test_a_stop_string_of_several_tokens_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    text = ask(client, question(picture())).choices[0].message.content
    stop = text[len(text) // 2 :][:6]
    for stream in (False, True):
        answer = ask(client, question(picture()), stop=[stop], stream=stream)
        seen = (
            "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
            if stream
            else answer.choices[0].message.content
        )
        assert seen == text[: text.index(stop)]


@pytest.mark.parametrize(
    ("size", "mode", "format"),
    [
        ((1, 1), "RGB", "PNG"),
        ((1, 150), "RGB", "JPEG"),
        ((3000, 2000), "RGB", "JPEG"),
        ((60, 60), "RGBA", "WEBP"),
        ((60, 60), "P", "GIF"),
        ((60, 60), "I;16", "PNG"),
        ((60, 60), "CMYK", "JPEG"),
    ],
)
def test_odd_images_are_answered(client: openai.OpenAI, size: tuple[int, int], mode: str, format: str) -> None:
    assert ask(client, question(picture(size, mode, format)), max_tokens=2).usage.completion_tokens >= 1


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"messages": question("data:image/png;base64,AAAA")}, 400),
        ({"messages": question(text="red circle " * 20_000)}, 400),
        ({"messages": []}, 400),
        ({"model": "other"}, 404),
        ({"max_tokens": 0}, 400),
        ({"temperature": 9}, 400),
        ({"messages": question("file:///etc/passwd")}, 400),
    ],
)
def test_a_bad_request_is_refused_and_nothing_else_happens(
    client: openai.OpenAI, fields: dict[str, Any], status: int
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, **{"messages": question(), **fields})
    assert caught.value.status_code == status
    assert "passwd" not in str(caught.value.body)
    assert ask(client, question(picture()), max_tokens=1).choices


def test_many_at_once_are_all_answered(client: openai.OpenAI) -> None:
    pictures = [picture((64 + 8 * number, 96), kind=number) for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda uri: ask(client, question(uri)), pictures))
    assert all(answer.usage.completion_tokens >= 1 for answer in answers)


def test_clients_that_leave_free_their_places(served: Process, client: openai.OpenAI) -> None:
    for _ in range(8):
        with ask(client, question(picture()), stream=True, max_tokens=400) as stream:
            next(iter(stream))
    until("nothing runs", lambda: served.metric("lensmith_requests_running") == 0)
    assert ask(client, question(picture()), max_tokens=1).choices


def test_the_engine_killed_comes_back(served: Process, client: openai.OpenAI) -> None:
    psutil = pytest.importorskip("psutil")
    engine = next(
        process
        for process in psutil.Process(served.process.pid).children()
        if {"api_server", "gateway.embedded"} & set(process.cmdline())
    )
    os.kill(engine.pid, signal.SIGKILL)
    served.wait_until("/ready", 503)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, question(picture()))
    assert caught.value.status_code == 503
    wait_ready(served)
    assert ask(client, question(picture()), max_tokens=1).choices
