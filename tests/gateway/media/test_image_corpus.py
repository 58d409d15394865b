"""Every image of the corpus is either served right or refused in our words, and no worker dies of it."""

from __future__ import annotations

import base64

import httpx
import pytest

from tests.support.gateway.image_corpus import BLUE, CASES, LIME, RED, SIZE, Case
from tests.support.gateway.images import close, sent_on, workers
from tests.support.gateway.processes import Process
from tests.support.gateway.requests import CHAT, envelope


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_image_of_the_corpus(shrinking: Process, case: Case) -> None:
    before = workers(shrinking)
    url = f"data:{case.media_type};base64," + base64.b64encode(case.file).decode()
    if case.says is None:
        image, _ = sent_on(shrinking, url)
        if case.upright:
            assert image.size == SIZE
            assert image.mode == "RGB"
            assert getattr(image, "n_frames", 1) == 1
            assert close(image, 0.25, 0.25, RED)
            assert close(image, 0.75, 0.25, LIME)
            assert close(image, 0.25, 0.75, BLUE)
            assert image.getexif().get(0x0112, 1) == 1
        else:
            assert image.size == (1, 1)
    else:
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        body = {"model": "fake", "messages": [{"role": "user", "content": parts}]}
        error = envelope(httpx.post(shrinking.url + CHAT, json=body, timeout=30), 400)
        assert case.says in error["message"]
        assert error["param"] == "messages[0].content[0]"
    assert set(before) <= set(workers(shrinking)), "the worker lives"
