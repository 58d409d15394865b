"""One contract: what the request path accepts and refuses is what the models, and the document made of them, say."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.api.chat import check_chat
from gateway.api.completions import check_completion
from gateway.api.unsupported import NOWHERE, NOWHERE_IN_TEXT
from gateway.contract.requests import ChatRequest, CompletionRequest, Message
from gateway.contract.validation import explain_validation
from gateway.engines.spec import OPENAI
from gateway.errors import ApiError

numbers = st.integers(-3, 130) | st.floats(-3, 130) | st.sampled_from([2**63, -(2**63), 2**31, 0.0, 1, 2, 20, 21])
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(["", "x", "auto", "none", "text", "json_object", "5"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "function", "name", "5", "x", "include_usage", "url"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
parts = (
    st.fixed_dictionaries({"type": st.just("text")}, optional={"text": st.text(max_size=3), "image_url": st.none()})
    | st.fixed_dictionaries({"type": st.just("image_url")}, optional={"image_url": json_values})
    | st.fixed_dictionaries(
        {
            "type": st.just("image_url"),
            "image_url": st.fixed_dictionaries({"url": st.text()}, optional={"detail": json_values}),
        }
    )
    | json_values
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "wizard"])},
        optional={"content": st.text(max_size=3) | st.lists(parts, max_size=3) | json_values, "name": st.just("n")},
    )
    | json_values,
    max_size=3,
)


def bodies(of: type, /, **likely: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    optional = {name: json_values for name in of.model_fields if name not in likely}  # type: ignore[attr-defined]
    return st.fixed_dictionaries(likely, optional={**optional, "unknown": json_values})


def schema_of(model: type) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(model.model_json_schema())  # type: ignore[attr-defined]


CASES = [
    (ChatRequest, check_chat, bodies(ChatRequest, model=st.just("m"), messages=messages)),
    (
        CompletionRequest,
        check_completion,
        bodies(CompletionRequest, model=st.just("m"), prompt=st.just("x") | json_values),
    ),
]


@pytest.mark.parametrize(("model", "check", "drawn"), CASES, ids=["chat", "text"])
def test_a_request_is_refused_if_and_only_if_its_model_says_so(model: Any, check: Any, drawn: Any) -> None:
    schema = schema_of(model)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(body=drawn)
    def compare(body: dict[str, Any]) -> None:
        said: tuple[str | None, str] | None = None
        try:
            model.model_validate(copy.deepcopy(body))
        except ValidationError as error:
            said = (explain_validation(error).param, explain_validation(error).code)
        served: tuple[str | None, str] | None = None
        try:
            check(copy.deepcopy(body), OPENAI)
        except ApiError as error:
            served = (error.param, error.code)
        if said is None and served is not None:  # a field that no engine behind the gateway has, refused by its name
            assert served[1] == "unsupported_parameter"
            assert served[0] in {*NOWHERE, *NOWHERE_IN_TEXT}
        else:
            assert served == said
        if not schema.is_valid(body):
            assert served is not None, "the document refuses what is served"

    compare()


@given(message=st.builds(dict, role=st.just("assistant"), content=st.lists(parts, max_size=4)))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_an_engine_gets_of_a_message_keeps_to_the_contract(message: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [message]}
    try:
        request = check_chat(copy.deepcopy(body), OPENAI)
    except ApiError:
        return
    written = request.body["messages"][0]
    Message.model_validate(written)
    kinds = [part["type"] for part in written["content"]]
    assert ("text", "text") not in set(itertools.pairwise(kinds))
    assert [part.url for part in request.images] == [
        part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"
    ]


def test_content_is_written_anew_of_what_is_known() -> None:
    image = {"url": "data:image/png;base64,AAAA", "detail": "low", "cache": 1}
    content = [
        {"type": "text", "text": "a", "image_url": None, "cache_control": {}},
        {"type": "text", "text": "b"},
        {"type": "image_url", "image_url": image, "text": None},
        {"type": "text", "text": "c"},
        {"type": "refusal", "refusal": "No."},
    ]
    message = {
        "role": "assistant",
        "content": content,
        "id": "1",
        "prefix": False,
        "reasoning_content": "hm",
        "name": None,
    }
    request = check_chat({"model": "m", "messages": [message]}, OPENAI)
    written = {"type": "image_url", "image_url": {"url": image["url"], "detail": "low"}}
    assert request.body["messages"] == [
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "ab"}, written, {"type": "text", "text": "cNo."}],
            "reasoning_content": "hm",
        }
    ]
    assert [part.location for part in request.images] == ["messages[0].content[2]"]
    assert request.images[0].image is request.body["messages"][0]["content"][1]["image_url"]
