"""Tokens as vocabularies spell them, and the text they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.streaming.logprobs import RawLogProbs
from gateway.streaming.token_bytes import byte_alphabet, token_bytes

SPELLED = {byte: character for character, byte in byte_alphabet().items()}


@given(st.binary())
def test_byte_level_tokens_are_any_bytes(data: bytes) -> None:
    assert token_bytes("".join(SPELLED[byte] for byte in data), byte_level=True) == data


@pytest.mark.parametrize(
    ("token", "byte_level", "expected"),
    [
        ("Ġcenter", True, b" center"),
        ("<|im_end|>", True, b"<|im_end|>"),
        ("日本", True, "日本".encode()),
        ("▁center", False, b" center"),
        ("<0x0A>", False, b"\n"),
        ("é", False, "é".encode()),
    ],
)
def test_a_token_is_its_text(token: str, byte_level: bool, expected: bytes) -> None:
    assert token_bytes(token, byte_level) == expected


def test_a_drawn_token_that_is_not_among_the_likeliest_stays_out_of_them() -> None:
    others = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.0}]
    entry = {"token": "c", "logprob": -7.0, "top_logprobs": others}
    RawLogProbs(2, byte_level=True).apply({"choices": [{"logprobs": {"content": [entry]}}, {"logprobs": None}, {}]})
    assert [other["token"] for other in entry["top_logprobs"]] == ["a", "b"]
    assert (entry["token"], entry["bytes"]) == ("c", [99])
