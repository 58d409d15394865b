"""What is wrong with a row is said in the language of the page, whatever it is."""

from __future__ import annotations

import html
import re
from typing import Any

from starlette.testclient import TestClient

from tests.support.studio.datasets import imported, lines, picture

QUESTION, ANSWER = {"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}


def chat(*turns: Any, images: Any = ("a.png",)) -> dict[str, Any]:
    return {"messages": list(turns), "images": images}


BROKEN = [
    "text",
    chat(QUESTION, ANSWER) | {"messages": 3},
    chat(QUESTION),
    chat(QUESTION, ANSWER | {"content": 5}),
    chat(QUESTION | {"role": "robot"}, ANSWER),
    chat(QUESTION, ANSWER, images=["a.png", "a.png"]),
    chat(QUESTION, ANSWER, images=3),
    chat(QUESTION, ANSWER, images=["gone.png"]),
    chat(QUESTION, ANSWER, images=["text.png"]),
    chat("x", ANSWER),
    chat(ANSWER, ANSWER),
    chat(QUESTION, ANSWER | {"content": ""}),
]


def test_in_chinese(client: TestClient) -> None:
    pictures = {"a.png": picture(), "text.png": b"no picture"}
    imported(client, {"rows.jsonl": lines(chat(QUESTION, ANSWER), *BROKEN)} | pictures)
    client.cookies.set("lensmith_language", "zh")
    told = re.findall(r'<p class="why">(.*?)</p>', client.get("/data/mine").text, re.DOTALL)
    assert len(told) == len(BROKEN)
    for sentence in told:
        assert re.search(r"[\u4e00-\u9fff]", sentence)
        own_words = re.sub(r"rows.jsonl, row \d+|'\w+'|user, [\w, ]+", "", html.unescape(sentence))
        assert not re.search(r"[a-z]+ [a-z]+", own_words), sentence
