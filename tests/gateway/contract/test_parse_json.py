"""A body is read alike whatever its size: a long one goes through another parser than a short one."""

from __future__ import annotations

import math

import orjson
import pytest

from gateway.contract.validation import LARGE, parse_json
from gateway.errors import ApiError

PADDING = b"A" * LARGE


def outcome(raw: bytes) -> object:
    try:
        return parse_json(raw)
    except ApiError as error:
        return error.status, error.code


@pytest.mark.parametrize(
    "value",
    [
        *(b"1", b"-0", b"-0.0", b"1e5", b"0.1234567890123456789", b"2.5e-324", b"null", b"true", b'""', b"[]", b"{}"),
        *(b"18446744073709551615", b"18446744073709551616", b"-9223372036854775808", b"-9223372036854775809"),
        *(b"9" * 400, b"9" * 5000, b"1e400", b"-1e400", b"1.7976931348623159e308", b"NaN", b"Infinity", b"-Infinity"),
        *(b"01", b"1.", b".5", b"+1", b"-", b"tru", b"'a'", b'"\xff"', b'"\xed\xa0\x80"', b'"\x01"', b'"\\x"'),
        *(b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', '"é\u2028"'.encode(), b"[1,]", b'{"a":1,"a":2}', b"/**/1"),
        *(b"[" * 150 + b"]" * 150, b"[" * 250 + b"]" * 250, b"[" * 2000 + b"]" * 2000, b'{"a":[1e400]}'),
        *(b"[" + b"1," * 1000 + b"1e3]", b'"' + b"," * 1000 + b'"', b"1} x", b"1}\0", b'"unfinished'),
    ],
)  # fmt: skip
def test_a_long_body_is_read_as_a_short_one(value: bytes) -> None:
    short = outcome(b'{"value":' + value + b',"padding":""}')
    long = outcome(b'{"value":' + value + b',"padding":"' + PADDING + b'"}')
    if isinstance(short, dict):
        assert isinstance(long, dict)
        assert long.pop("padding") == PADDING.decode()
        assert short.pop("padding") == ""
    assert repr(long) == repr(short)


@pytest.mark.parametrize("number", [b"1e400", b"9" * 5000])
def test_no_number_becomes_infinite(number: bytes) -> None:
    assert outcome(b'{"value":' + number + b',"padding":"' + PADDING + b'"}') == (400, "invalid_json")


def test_what_is_read_can_be_written() -> None:
    body = parse_json(b'{"value":' + b"9" * 30 + b',"padding":"' + PADDING + b'"}')
    assert math.isclose(orjson.loads(orjson.dumps(body))["value"], 1e30)
