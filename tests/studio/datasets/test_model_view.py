"""What the model sees of a row is what training encodes."""

from __future__ import annotations

import html
import re

from starlette.testclient import TestClient

from tests.support.paths import ROOT
from tests.support.studio.datasets import imported, lines, picture

MODEL = str(ROOT / "examples" / "shapes-vl")


def test_tokens_labels_and_the_resized_picture_are_shown(client: TestClient) -> None:
    record = {"question": "<image>Which colour?", "answer": "red <i>红", "image": "a.png"}
    imported(client, {"rows.jsonl": lines(record), "a.png": picture(size=(200, 130))})
    seen = client.post("/data/mine/rows/1/model", data={"model": MODEL}).text
    learnt = "".join(re.findall(r'<span class="tokens learnt">(.*?)</span>', seen.split("token-text")[1], re.S))
    assert html.unescape(re.sub(r"</?b>", "", learnt)).strip() == "red <i>红<|im_end|>"
    assert "<i>" not in seen
    assert "192 \N{MULTIPLICATION SIGN} 128" in seen
    assert "24 picture tokens" in seen
    other = client.post("/data/mine/rows/1/model", data={"model": "/nowhere"})
    assert other.status_code == 400
    assert "/nowhere" in other.json()["error"]
    assert client.post("/data/mine/rows/1/model", data={"model": MODEL}).status_code == 200
