"""Every image of the corpus is either served right or refused in our words, and no worker dies of it."""

from __future__ import annotations

import base64

import httpx
import pytest
from image_corpus import BLUE, CASES, LIME, RED, SIZE, Case
from processes import Process
from test_gateway_bad_input import CHAT, envelope
from test_gateway_image_workers import close, sent_on, shrinking, uri, workers  # noqa: F401, a fixture among them


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_image_of_the_corpus(shrinking: Process, case: Case) -> None:  # noqa: F811
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
