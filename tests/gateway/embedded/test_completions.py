"""Text completions and tokenising: the same tokens as transformers' own."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.support.gateway.embedded_process import MODEL, Reference, all_at_once, for_processor, picture, question

PROMPT = "<|im_start|>user\nred circle<|im_end|>\n<|im_start|>assistant\n"


def greedy(reference: Reference, text: str, max_tokens: int) -> str:
    features = reference.tokenizer(text, return_tensors="pt")
    ids = reference.model.generate(**features, do_sample=False, max_new_tokens=max_tokens)
    return reference.decode(ids[0, features["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("prompt", [PROMPT, "a red"])
def test_the_answer_is_transformers_own(openai_client: OpenAI, reference: Reference, prompt: str) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0}
    whole = openai_client.completions.create(**fields)
    assert whole.choices[0].text == greedy(reference, prompt, 8)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(reference.tokenizer(prompt).input_ids)
    chunks = list(openai_client.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_stop_n_and_log_probabilities(openai_client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "a red", "max_tokens": 8, "temperature": 0}
    whole = openai_client.completions.create(**fields, n=2, logprobs=2)
    assert whole.choices[0].text == whole.choices[1].text
    found = whole.choices[0].logprobs
    assert found is not None
    assert "".join(found.tokens or []) == whole.choices[0].text or "\ufffd" in "".join(found.tokens or [])
    assert found.token_logprobs == [max(top.values()) for top in found.top_logprobs or []]
    assert [len(top) for top in found.top_logprobs or []] == [2] * 8
    assert (found.text_offset or [1])[0] == 0
    stop = whole.choices[0].text[2:4]
    assert openai_client.completions.create(**fields, stop=stop).choices[0].text == whole.choices[0].text[:2]


def test_a_text_and_a_chat_with_an_image_share_a_batch(http: httpx.Client, openai_client: OpenAI) -> None:
    chats = [{"messages": question("what?", picture(1)), "max_tokens": 12, "temperature": 0}] * 3
    alone = all_at_once(http, chats[:1])[0]["choices"][0]["message"]["content"]
    import threading

    texts: list[str] = []
    thread = threading.Thread(
        target=lambda: texts.append(
            openai_client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0).choices[0].text
        )
    )
    thread.start()
    together = all_at_once(http, chats)
    thread.join()
    assert [answer["choices"][0]["message"]["content"] for answer in together] == [alone] * 3
    assert texts[0]


def test_tokens_are_those_of_the_prompt(http: httpx.Client, reference: Reference) -> None:
    text = http.post("/tokenize", json={"model": MODEL, "prompt": PROMPT}).json()
    assert text["tokens"] == reference.tokenizer(PROMPT).input_ids
    assert text["count"] == len(text["tokens"]) < text["max_model_len"]
    chat = http.post("/tokenize", json={"model": MODEL, "messages": question("what?", picture(1))}).json()
    expected = reference.features(for_processor("what?", picture(1)))["input_ids"][0].tolist()
    assert chat["tokens"] == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a <|image_pad|> b"}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "top_logprobs": 1}, "top_logprobs"),
        ({"prompt": "red " * 40_000}, "prompt"),
    ],
)
def test_what_is_refused_is_named(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/completions", json={"model": MODEL, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
