"""What the gateway settles for an engine with LMDeploy's row: stop strings, roles, and fields it must refuse."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.streaming.stops import StopCutter, Stops
from tests.support.gateway.processes import Process, until
from tests.support.gateway.requests import CHAT, ask, envelope
from tests.support.gateway.supervised import child, serve_fake

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4)


def reference(text: str, stops: list[str]) -> str:
    """A letter at a time: the text before the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        hits = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[: min(hits)]
    return text


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 30), max_size=6))
def test_the_text_is_cut_before_the_first_stop_string_however_it_comes(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    cutter = StopCutter(stops)
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    given_back = ""
    for start, end in pairwise(places):
        given_back += cutter.feed(text[start:end])
        assert reference(text, stops).startswith(given_back), "never more than the answer"
    given_back += cutter.end()
    assert given_back == reference(text, stops)
    assert cutter.hit == (reference(text, stops) != text)


def words(longest: int) -> list[str]:
    return ["".join(letters) for length in range(1, longest + 1) for letters in product("ab", repeat=length)]


@pytest.mark.parametrize("stop", words(4))
def test_only_what_could_begin_a_stop_string_is_kept_back(stop: str) -> None:
    for text in words(6):
        cutter = StopCutter([stop])
        given_back = ""
        for end in range(1, len(text) + 1):
            given_back += cutter.feed(text[end - 1])
            if cutter.hit:
                break
            beginning = max(size for size in range(len(stop)) if text[:end].endswith(stop[:size]))
            assert given_back == text[: end - beginning]
            assert cutter.pending == beginning
        else:
            assert given_back + cutter.end() == text
            assert cutter.pending == 0


def test_without_stop_strings_all_text_passes_at_once() -> None:
    assert StopCutter([]).feed("text") == "text"


def sent(stops: Stops, *choices: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The choices of a chunk that are left to be sent; None if the chunk is not sent."""
    payload: dict[str, Any] = {"choices": list(choices)}
    return payload["choices"] if stops.cut_chunk(payload) else None


def test_a_chunk_with_nothing_but_pending_text_is_not_sent() -> None:
    stops = Stops(["END"], n=1)
    assert sent(stops, {"index": 0, "delta": {"content": "E"}}) is None
    assert sent(stops, {"index": 0, "delta": {"content": "N"}}) is None
    assert sent(stops, {"index": 0, "delta": {"content": "x"}}) == [{"index": 0, "delta": {"content": "ENx"}}]


def test_the_role_is_sent_though_the_text_beside_it_is_pending() -> None:
    first = {"index": 0, "delta": {"role": "assistant", "content": "E"}}
    assert sent(Stops(["END"], n=1), first) == [{"index": 0, "delta": {"role": "assistant", "content": ""}}]


@pytest.mark.parametrize("last", [{"delta": {}}, {"delta": {"content": ""}}, {}, {"delta": None}])
def test_pending_text_comes_with_the_end_of_an_answer(last: dict[str, Any]) -> None:
    stops = Stops(["END"], n=1)
    sent(stops, {"index": 0, "delta": {"content": "E"}})
    expected = [{"index": 0, "delta": {"content": "E"}, "finish_reason": "length"}]
    assert sent(stops, {"index": 0, "finish_reason": "length", **copy.deepcopy(last)}) == expected


def test_a_complete_stop_string_ends_the_answer_in_the_chunk_that_completes_it() -> None:
    stops = Stops(["END"], n=1)
    sent(stops, {"index": 0, "delta": {"content": "E"}})
    expected = [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]
    assert sent(stops, {"index": 0, "delta": {"content": "ND and more"}}) == expected
    assert stops.all_hit


def test_each_answer_of_a_request_is_cut_for_itself() -> None:
    stops = Stops(["END"], n=2)
    one, two = ({"index": index, "delta": {"content": text}} for index, text in ((0, "E"), (1, "text")))
    assert sent(stops, one, two) == [{"index": 1, "delta": {"content": "text"}}]
    sent(stops, {"delta": {"content": "ND"}})
    assert not stops.all_hit, "the other one goes on"
    sent(stops, {"index": 1, "delta": {"content": "END"}})
    assert stops.all_hit


def test_an_index_that_nobody_asked_for_does_no_harm() -> None:
    assert sent(Stops(["END"], n=2), {"index": 7, "delta": {"content": "text"}}) is not None


@pytest.mark.parametrize(
    "delta", [{"content": None}, {"content": ""}, {"tool_calls": [{"index": 0}]}, {"refusal": "no"}]
)
def test_a_choice_without_text_is_sent_as_it_is(delta: dict[str, Any]) -> None:
    assert sent(Stops(["END"], n=1), {"index": 0, "delta": dict(delta)}) == [{"index": 0, "delta": delta}]


@pytest.mark.parametrize("payload", [{"choices": [], "usage": {}}, {"object": "ping"}, {"choices": "none"}])
def test_a_chunk_without_choices_is_sent_as_it_is(payload: dict[str, Any]) -> None:
    before = dict(payload)
    assert Stops(["END"], n=1).cut_chunk(payload)
    assert payload == before


def test_streamed_text_completions_are_cut_too() -> None:
    stops = Stops(["END"], n=1)
    assert sent(stops, {"index": 0, "text": "a E"}) == [{"index": 0, "text": "a "}]
    assert sent(stops, {"index": 0, "text": "ND"}) == [{"index": 0, "text": "", "finish_reason": "stop"}]


def test_whole_answers_are_cut_each_for_itself() -> None:
    choices: list[dict[str, Any]] = [
        {"message": {"content": "aENDb"}, "finish_reason": "length"},
        {"message": {"content": "aE"}, "finish_reason": "length"},
        {"message": {"content": None}, "finish_reason": "tool_calls"},
        {"text": "ENDb", "finish_reason": None},
        {"message": {"content": "one more than was asked for: END"}, "finish_reason": "length"},
    ]
    untouched = dict(choices[4])
    Stops(["END"], n=4).cut_answer({"choices": choices})
    assert choices == [
        {"message": {"content": "a"}, "finish_reason": "stop"},
        {"message": {"content": "aE"}, "finish_reason": "length"},
        {"message": {"content": None}, "finish_reason": "tool_calls"},
        {"text": "", "finish_reason": "stop"},
        untouched,
    ]


@given(
    tokens=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=8),
    stop=st.text("ab", min_size=1, max_size=4),
    streamed=st.booleans(),
)
def test_the_tokens_are_cut_with_the_text(tokens: list[str], stop: str, streamed: bool) -> None:
    """Their texts hold the answer, and without the last one they hold less."""
    text, entries = (
        "".join(tokens),
        [{"token": token, "logprob": -1.0, "bytes": list(token.encode())} for token in tokens],
    )
    cutter, seen, given_text = Stops([stop], 1), [], ""
    if streamed:
        for index, (token, entry) in enumerate(zip(tokens, entries, strict=True)):
            finish = "stop" if index == len(tokens) - 1 else None
            choice = {
                "index": 0,
                "delta": {"content": token},
                "finish_reason": finish,
                "logprobs": {"content": [entry]},
            }
            payload: dict[str, Any] = {"choices": [choice]}
            if cutter.cut_chunk(payload):
                given_text += payload["choices"][0]["delta"]["content"]
                seen += payload["choices"][0]["logprobs"]["content"]
    else:
        choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": entries}}
        cutter.cut_answer({"choices": [choice]})
        given_text, seen = choice["message"]["content"], choice["logprobs"]["content"]  # type: ignore[index]
    assert given_text == reference(text, [stop])
    assert seen == entries[: len(seen)]
    assert "".join(entry["token"] for entry in seen).startswith(given_text)
    assert len("".join(entry["token"] for entry in seen[:-1])) < len(given_text) or not seen


@pytest.fixture(scope="module")
def served() -> Iterator[Process]:
    with serve_fake() as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway


@pytest.fixture(scope="module")
def client(served: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("stop", "text"),
    [("3 4", "0 1 2 "), (["7", "2 3"], "0 1 "), ("0", ""), ("nowhere", "0 1 2 3 4 5 "), (["5 6", "5"], "0 1 2 3 4 ")],
)
@pytest.mark.parametrize("usage", [False, True])
def test_stop_strings_cut_plain_answers_and_streams_alike(
    client: openai.OpenAI, stop: Any, text: str, usage: bool
) -> None:
    plain = client.chat.completions.create(model="fake", messages=ask("count 6"), stop=stop)
    assert plain.choices[0].message.content == text
    assert plain.choices[0].finish_reason == "stop"
    options: dict[str, Any] = {"stream": True, **({"stream_options": {"include_usage": True}} if usage else {})}
    chunks = list(client.chat.completions.create(model="fake", messages=ask("count 6"), stop=stop, **options))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == text
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[0].delta.role == "assistant"
    assert [chunk.usage.prompt_tokens for chunk in chunks if chunk.usage] == ([7] if usage else [])


def test_a_stop_string_ends_the_engines_work(served: Process, client: openai.OpenAI) -> None:
    engine = child(served)
    port = next(c.laddr.port for c in engine.net_connections() if c.status == "LISTEN")
    stats = f"http://127.0.0.1:{port}/stats"
    aborted = httpx.get(stats).json()["aborted"]
    list(client.chat.completions.create(model="fake", messages=ask("count 500 0.02"), stop="2 3", stream=True))
    until("the engine's abort", lambda: httpx.get(stats).json()["aborted"] == aborted + 1)


def last_count(answer: str, names: str) -> int:
    return int(re.findall(rf'"(?:{names})":\s*(\d+)', answer)[-1])


LONG = 400  # tokens of an answer, far more than come before its stop string


def test_a_stop_string_ends_an_answer_whose_usage_is_asked_for_and_the_usage_is_the_engines(served: Process) -> None:
    question, stop = {"messages": ask(f"count {LONG} 0.02")}, ["never there", "2 3"]
    text = {"prompt": f"count {LONG} 0.02", "max_tokens": LONG}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    requests: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {**question, "stop": stop}),
        (CHAT, {**question, "stop": stop, **streamed}),
        ("/v1/completions", {**text, "stop": stop}),
        ("/v1/completions", {**text, "stop": stop, **streamed}),
        ("/v1/messages", {**question, "max_tokens": LONG, "stop_sequences": stop}),
        ("/v1/messages", {**question, "max_tokens": LONG, "stop_sequences": stop, "stream": True}),
        ("/api/chat", {**question, "options": {"stop": stop}, "stream": False}),
        ("/api/chat", {**question, "options": {"stop": stop}}),
    ]
    for path, body in requests:
        answer = httpx.post(served.url + path, json={"model": "fake", **body}, timeout=30)
        assert answer.status_code == 200, answer.text
        assert '"abort"' not in answer.text
        assert 3 < last_count(answer.text, "completion_tokens|output_tokens|eval_count") < LONG // 2, answer.text[-500:]
        assert last_count(answer.text, "prompt_tokens|input_tokens|prompt_eval_count") == 7


def test_a_whole_answer_that_was_ended_at_a_stop_string_is_one_like_any_other(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "fake", "messages": ask("count 6"), "logprobs": True, "top_logprobs": 2}
    answer, other = (client.chat.completions.create(**fields, stop=stop) for stop in (["3 4"], None))
    assert answer.model_dump(exclude={"id", "created", "choices", "usage"}) == other.model_dump(
        exclude={"id", "created", "choices", "usage"}
    )
    assert answer.choices[0].model_fields_set == other.choices[0].model_fields_set
    assert answer.choices[0].message.content == "0 1 2 "
    assert answer.choices[0].logprobs.content == other.choices[0].logprobs.content[:3]
    thought = client.chat.completions.create(model="fake", messages=ask("think"), stop="wör")
    assert thought.choices[0].message.model_dump(exclude_none=True) == {
        "role": "assistant",
        "content": "Hello ",
        "reasoning_content": "Let me see.",
    }


def test_an_error_before_the_stop_string_is_the_answer(served: Process) -> None:
    for fault, status in (("status 404", 404), ("first-event", 502), ("mid-event flat", 400), ("mid-end", 502)):
        body = {"model": "fake", "messages": ask(f"fault {fault}"), "stop": "x"}
        envelope(httpx.post(served.url + CHAT, json=body), status)


def test_an_engine_that_cannot_end_an_answer_goes_on_to_its_end() -> None:
    with serve_fake("--no-abort") as gateway:
        gateway.wait_until("/ready", 200)
        body = {"model": "fake", "messages": ask("count 30 0.005"), "stop": "2 3"}
        answer = httpx.post(gateway.url + CHAT, json=body).json()
        assert answer["choices"][0]["message"]["content"] == "0 1 "
        assert answer["usage"]["completion_tokens"] == 30


def test_a_developer_message_becomes_a_system_message(client: openai.OpenAI) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *ask("echo")]
    answer = client.chat.completions.create(model="fake", messages=messages)
    seen = json.loads(answer.choices[0].message.content)["body"]["messages"]
    assert [message["role"] for message in seen] == ["system", "user"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
)
def test_what_the_engine_would_drop_in_silence_is_refused(served: Process, fields: dict[str, Any], param: str) -> None:
    body = {"model": "fake", "messages": ask("hi"), **fields}
    error = envelope(httpx.post(served.url + CHAT, json=body), 400)
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


def test_log_probabilities_are_of_text_and_have_the_token_among_its_alternatives(client: openai.OpenAI) -> None:
    for top, expected in ((0, []), (2, [" center", "0 "]), (3, [" center", "0 ", "é"])):
        fields: dict[str, Any] = {"model": "fake", "messages": ask("count 2"), "logprobs": True, "top_logprobs": top}
        whole = client.chat.completions.create(**fields).choices[0].logprobs
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**fields, stream=True)]
        streamed = [entry for choice in chunks if choice.logprobs for entry in choice.logprobs.content or []]
        assert whole is not None
        assert whole.content == streamed
        first, second = streamed
        assert (first.token, second.token, first.bytes) == ("0 ", "1 ", list(b"0 "))
        assert [other.token for other in first.top_logprobs] == expected
        assert [other.bytes for other in first.top_logprobs] == [list(token.encode()) for token in expected]


def test_guided_answers_are_passed_on(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
    for wanted in (form, {"type": "json_object"}, {"type": "text"}):
        answer = client.chat.completions.create(model="fake", messages=ask("echo"), response_format=wanted)
        assert json.loads(answer.choices[0].message.content)["body"]["response_format"] == wanted


def test_values_that_ask_for_nothing_are_left_out_for_an_engine_that_does_not_know_them(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"presence_penalty": 0, "tools": [], "store": False, "service_tier": "auto"}
    answer = client.chat.completions.create(model="fake", messages=ask("echo"), **asked)
    assert not asked.keys() & json.loads(answer.choices[0].message.content)["body"].keys()


def test_the_engine_gets_neither_stop_strings_nor_tools_that_must_not_be_called(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked: dict[str, Any] = {"stop": ["never there"], "tools": tools, "tool_choice": "none"}
    answer = client.chat.completions.create(model="fake", messages=ask("echo"), **asked)
    assert not {"stop", "tools", "tool_choice"} & set(json.loads(answer.choices[0].message.content)["body"])


def test_fields_beyond_openais_reach_the_engine_as_it_knows_them_or_are_refused(client: openai.OpenAI) -> None:
    given = {"min_tokens": 2, "chat_template_kwargs": {"enable_thinking": False}, "safety_identifier": "x"}
    answer = client.chat.completions.create(model="fake", messages=ask("echo"), extra_body=given)
    seen = json.loads(answer.choices[0].message.content)["body"]
    assert (seen["min_new_tokens"], seen["chat_template_kwargs"]) == (2, {"enable_thinking": False})
    assert not {"min_tokens", "safety_identifier"} & set(seen)
    for field in ("session_id", "input_ids", "chat_template", "no_such_field"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="fake", messages=ask("hi"), extra_body={field: 1})
        assert refused.value.param == field
