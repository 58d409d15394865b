"""Tokens to text: whole characters and exact stop strings, however the bytes arrive."""

from __future__ import annotations

from itertools import pairwise
from types import MappingProxyType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gateway.embedded.generation.text import Detokenizer, TokenBytes
from gateway.streaming.token_bytes import byte_alphabet
from tests.support.paths import SHAPES_VL

TOKENIZER = AutoTokenizer.from_pretrained(SHAPES_VL)
TOKEN_BYTES = TokenBytes(TOKENIZER)


def cut(text: str, stops: list[str]) -> str:
    """Reads one character at a time and ends before the first complete stop string, of several the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def grow(pieces: list[bytes], stops: tuple[str, ...]) -> list[str]:
    answer = Detokenizer(stops)
    shown = []
    for piece in pieces:
        shown.append(answer.push(piece))
        if answer.stopped:
            return shown
    return [*shown, answer.finish()]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


few_letters = st.text("abé🙂", max_size=30)
stop_lists = st.lists(st.text("abé🙂", min_size=1, max_size=4), max_size=3)


@given(few_letters, stop_lists, st.lists(st.integers(0, 1000)))
def test_the_answer_ends_before_the_first_complete_stop_string_wherever_its_bytes_are_cut(text, stops, cuts):
    assert "".join(grow(split(text.encode(), cuts), tuple(stops))) == cut(text, stops)


@given(few_letters, stop_lists)
def test_nothing_shown_is_ever_taken_back(text, stops):
    answer, shown, expected = Detokenizer(tuple(stops)), "", cut(text, stops)
    for character in text:
        shown += answer.push(character.encode())
        assert expected.startswith(shown)
        assert answer.shown == len(shown)
        if answer.stopped:
            break


@given(few_letters)
def test_without_stop_strings_every_whole_character_is_shown_at_once(text):
    answer = Detokenizer()
    assert [answer.push(character.encode()) for character in text] == list(text)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1)))
def test_any_tokens_give_the_text_that_the_tokenizer_gives(ids):
    assert "".join(grow([TOKEN_BYTES.shown(i) for i in ids], ())) == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_a_character_split_over_tokens_is_shown_whole_and_a_broken_one_as_a_replacement():
    assert grow([b"a\xf0\x9f", b"\x99", b"\x82b"], ()) == ["a", "", "🙂b", ""]
    assert grow([b"a\xf0\x9f"], ()) == ["a", "\ufffd"]


def test_special_tokens_do_not_show_but_have_a_name():
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    assert (TOKEN_BYTES.shown(end), TOKEN_BYTES.raw(end)) == (b"", b"<|im_end|>")


def test_ids_beyond_the_tokenizer_are_empty():
    assert TOKEN_BYTES.shown(len(TOKENIZER)) == b""


def test_the_byte_alphabet_has_each_byte_once():
    assert sorted(byte_alphabet().values()) == list(range(256))


def test_a_tokenizer_that_is_neither_kind_is_refused():
    class Odd:
        added_tokens_decoder = MappingProxyType({})
        backend_tokenizer = SimpleNamespace(decoder="WordPiece")

        def encode(self, text, add_special_tokens):
            return [0, 1]

        def convert_ids_to_tokens(self, token):
            return "##a"

    with pytest.raises(ValueError, match="neither byte-level BPE nor SentencePiece"):
        TokenBytes(Odd())
