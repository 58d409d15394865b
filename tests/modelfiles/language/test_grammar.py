"""Our Modelfile parser and Ollama's agree, and what we write is read back unchanged or refused."""

from __future__ import annotations

import codecs
import json
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelfiles.language.create_request import RequestError, create_request
from modelfiles.language.grammar import Command, ModelfileSyntaxError, UnrepresentableError, emit, parse, quote
from tests.support.paths import GOLDENS

CASES: list[dict[str, Any]] = json.loads((GOLDENS / "modelfile_parse.json").read_text())["cases"]


PARSED = [case for case in CASES if "error" not in case["ollama"]]


def cases(chosen: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case["name"])


@cases(PARSED)
def test_parses_as_ollama_does(case: dict[str, Any]) -> None:
    expected = [(command["Name"], command["Args"]) for command in case["ollama"]["commands"]]
    assert [command.pair for command in parse(case["modelfile"])] == expected


@cases([case for case in CASES if case not in PARSED])
def test_refuses_what_ollama_refuses_in_its_words(case: dict[str, Any]) -> None:
    with pytest.raises(ModelfileSyntaxError) as caught:
        parse(case["modelfile"])
    assert caught.value.ollama == case["ollama"]["error"]


@cases([case for case in PARSED if "request" in case["ollama"]])
def test_makes_the_request_that_ollama_makes(case: dict[str, Any]) -> None:
    expected = {key: value for key, value in case["ollama"]["request"].items() if value}
    request = create_request(parse(case["modelfile"]))
    assert request == json.loads(json.dumps(expected), parse_float=lambda text: pytest.approx(float(text), rel=1e-6))


# "from_dot_missing" is about files on disk, which create_request leaves to `push` and `lint`.
@cases([case for case in PARSED if "request_error" in case["ollama"] and case["name"] != "from_dot_missing"])
def test_refuses_values_as_ollama_does(case: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        create_request(parse(case["modelfile"]))
    assert str(caught.value) == case["ollama"]["request_error"]


def test_a_value_written_in_utf16_or_with_a_mark_is_read_as_ollama_reads_it() -> None:
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        assert parse(mark + "FROM é\n".encode(encoding))[0].args == "é"
        assert parse(mark + "FROM é".encode(encoding) + b"x")[0].args == "é\ufffd"
    assert parse(b"\xef\xbb\xbfFROM x\n")[0].args == "x"
    assert parse(b"FROM a\xffb\n")[0].args == "a\ufffdb"


def test_positions_count_lines_as_editors_do() -> None:
    commands = parse('FROM x\r\n\r\n  SYSTEM """a\r\nb"""\r\nPARAMETER top_k 1')
    assert [(c.line, c.column) for c in commands] == [(1, 1), (3, 3), (5, 1)]
    with pytest.raises(ModelfileSyntaxError) as caught:
        parse("FROM x\r\n SYSTM y\n")
    assert (caught.value.line, caught.value.column) == (2, 2)
    assert caught.value.ollama.startswith("(line 3)")  # Ollama counts \r\n twice


def pairs(text: str) -> list[tuple[str, str]]:
    return [command.pair for command in parse(text)]


def test_a_comment_goes_from_the_start_of_a_line_to_its_end() -> None:
    assert pairs("# SYSTEM a\n  # FROM y\r\nFROM x # no comment\n#") == [("model", "x # no comment")]


def test_a_carriage_return_alone_ends_a_line() -> None:
    assert [(c.pair, c.line, c.column) for c in parse("FROM x\rSYSTEM y\r")] == [
        (("model", "x"), 1, 1),
        (("system", "y"), 2, 1),
    ]


def test_the_last_line_need_not_be_ended() -> None:
    assert pairs("FROM x\nMESSAGE user hi") == [("model", "x"), ("message", "user: hi")]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_messages_are_of_three_roles(role: str) -> None:
    assert pairs(f"FROM x\nMESSAGE {role} hi\nSYSTEM s\n")[1:] == [("message", f"{role}: hi"), ("system", "s")]


def test_only_the_name_of_a_parameter_may_have_digits_and_underscores() -> None:
    assert pairs("FROM x\nPARAMETER f16_kv true\n")[1] == ("f16_kv", "true")
    for text in ("FROM x\nSYST3M y\n", "FROM x\nSYS_TEM y\n"):
        with pytest.raises(ModelfileSyntaxError, match=r"line 2, column 1: \(line 2\): command must be one of"):
            parse(text)
    for text, word in (("PARAMETER top-k 1", "top"), ("MESSAGE us3r hi", "us"), ("MESSAGE us_er hi", "us")):
        with pytest.raises(ModelfileSyntaxError) as caught:
            parse(f"FROM x\n{text}\n")
        assert caught.value.ollama == f"unexpected EOF: {word}"


def test_an_opening_quote_is_not_also_the_closing_one() -> None:
    assert pairs('FROM x\nSYSTEM  "\na"\n')[1] == ("system", "\na")
    assert pairs('FROM x\nSYSTEM  """\na"""\n')[1] == ("system", "\na")


def test_blanks_after_a_closing_quote_do_not_matter() -> None:
    assert pairs('FROM x\nSYSTEM "a" \t\nPARAMETER top_k 1\n')[1:] == [("system", "a"), ("top_k", "1")]


def test_a_byte_order_mark_before_text_is_passed_over() -> None:
    assert pairs("\ufeff# a comment\nFROM x\n") == [("model", "x")]


def test_a_missing_from_is_reported_at_the_start() -> None:
    with pytest.raises(ModelfileSyntaxError) as caught:
        parse("# nothing\n  SYSTEM a\n")
    assert (caught.value.ollama, caught.value.line, caught.value.column) == ("no FROM line", 1, 1)


# Text that is dense in what matters: quotes, ends of lines, characters that vanish, and what looks like a directive.
PIECES = [
    '"', '""', '"""', "\n", "\r", "\r\n", " ", "\t", "\u3000", "\u00a0", "\u200b", "\u200d", "👩", "中文", "#", "\\n",
    "FROM y", "\nADAPTER /etc/x\n", '"""\nADAPTER /etc/x', "{{ .System }}", "<|im_end|>", "\x00", "\ud800", "\u2028",
]  # fmt: skip
pieces = st.sampled_from(PIECES)
texts = st.one_of(st.text(max_size=40), st.lists(pieces, max_size=8).map("".join))


def survives(text: str, name: str) -> bool:
    """Whether the value can be written; asserts that it comes back unchanged, or is refused with the reason."""
    commands = [Command("model", "."), Command(name, f"user: {text}" if name == "message" else text)]
    commands.append(Command("top_k", "7"))
    hidden = any(not c.isprintable() and c not in "\t\r\n" for c in text)
    ends_early = any(line.rstrip(" \t").endswith('"""') for line in text.replace("\r", "\n").split("\n")[:-1])
    if hidden or ends_early:
        with pytest.raises(UnrepresentableError, match="U\\+.*modelfile push" if hidden else 'in """ .*modelfile push'):
            emit(commands)
        return False
    written = emit(commands)
    assert [command.pair for command in parse(written)] == [command.pair for command in commands]
    assert [command.pair for command in parse(written.encode())] == [command.pair for command in commands]
    return True


NAMES = ["system", "template", "stop", "license", "message"]


@settings(max_examples=500, deadline=None)
@given(text=texts, name=st.sampled_from(NAMES))
@example(text='"""', name="system")
@example(text='"\n""" \n', name="template")
def test_a_value_survives_or_is_refused_by_name(text: str, name: str) -> None:
    survives(text, name)


def test_ten_thousand_random_values_survive_or_are_refused_by_name() -> None:
    random = Random(5)
    kept = 0
    for _ in range(10_000):
        text = "".join(random.choice(PIECES) for _ in range(random.randrange(9)))
        kept += survives(text, random.choice(NAMES))
    assert 1000 < kept < 9000, "both outcomes are common in this mix"


@settings(max_examples=500, deadline=None)
@given(source=st.lists(st.one_of(pieces, st.sampled_from(["FROM x\n", "SYSTEM ", "MESSAGE user ", "PARAMETER "]))))
def test_any_text_is_parsed_or_refused_with_a_position(source: list[str]) -> None:
    text = "FROM m\n" + "".join(source)
    refused = None
    try:
        positions = [(command.line, command.column) for command in parse(text)]
    except ModelfileSyntaxError as error:
        refused = error
        positions = [(error.line, error.column)]
    assert positions == sorted(set(positions))
    assert all(1 <= line <= len(text.splitlines()) + 1 and column >= 1 for line, column in positions)
    assert refused is None or refused.ollama


def test_names_the_character_that_ollama_would_delete() -> None:
    with pytest.raises(UnrepresentableError, match=r"line 2: Ollama deletes U\+3000"):
        quote("你好\n世\u3000界")


def test_names_the_line_that_would_end_the_value() -> None:
    with pytest.raises(UnrepresentableError, match='line 2: a line that ends in """'):
        quote('a\nb"""\nc')


def test_commands_are_written_as_people_write_them() -> None:
    commands = [Command("model", "x"), Command("message", "user: hi"), Command("system", "s"), Command("top_k", "1")]
    assert emit(commands) == "FROM x\nMESSAGE user hi\nSYSTEM s\nPARAMETER top_k 1\n"


@pytest.mark.parametrize("name", ["num ctx", "top_k 1\nADAPTER", "fröm"])
def test_a_name_that_is_no_parameter_is_not_written(name: str) -> None:
    with pytest.raises((UnrepresentableError, ModelfileSyntaxError)):
        emit([Command("model", "."), Command(name, "x")])


def test_a_megabyte_of_lines_is_read_in_one_pass() -> None:
    licence = '"quoted" line\n' * 70_000
    assert parse(f'FROM x\nLICENSE """{licence}"""\n')[1].args == licence
