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
from gateway.engines.remote import spec_at_url
from gateway.engines.spec import LMDEPLOY, OPENAI, TRANSFORMERS, VLLM, EngineSpec
from gateway.errors import ApiError
from modelfiles.folder.chat_template import render_chat_template
from tests.support.finetune.other_families import CHATML, GEMMA, IDEFICS
from tests.support.paths import ROOT

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


@given(message=st.builds(dict, role=st.just("user"), content=st.lists(parts, max_size=4)))
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
        "role": "user",
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
            "role": "user",
            "content": [{"type": "text", "text": "ab"}, written, {"type": "text", "text": "cNo."}],
            "reasoning_content": "hm",
        }
    ]
    assert [part.location for part in request.images] == ["messages[0].content[2]"]
    assert request.images[0].image is request.body["messages"][0]["content"][1]["image_url"]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
ASKED = {"role": "user", "content": "?"}


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
@pytest.mark.parametrize("spec", [OPENAI, LMDEPLOY, TRANSFORMERS], ids=lambda spec: spec.name)
def test_an_image_in_a_message_that_is_no_users_is_refused_by_name(role: str, spec: Any) -> None:
    message = {"role": role, "content": [{"type": "text", "text": "x"}, IMAGE]}
    with pytest.raises(ApiError) as caught:
        check_chat({"model": "m", "messages": [message, ASKED]}, spec)
    assert (caught.value.param, caught.value.code) == ("messages[0].content[1]", "unsupported_parameter")


def test_an_answer_is_continued_where_the_engine_can_and_else_refused() -> None:
    messages = [ASKED, {"role": "assistant", "content": "It is"}]
    for spec in (OPENAI, LMDEPLOY):
        assert check_chat({"model": "m", "messages": copy.deepcopy(messages)}, spec).body["messages"] == messages
    with pytest.raises(ApiError) as caught:
        check_chat({"model": "m", "messages": messages}, TRANSFORMERS)
    assert (caught.value.param, caught.value.code) == ("messages[1]", "unsupported_parameter")


def test_instructions_and_a_developers_message_are_one_where_templates_know_one() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "No jokes."}]},
        ASKED,
    ]
    one = check_chat({"model": "m", "messages": copy.deepcopy(messages)}, LMDEPLOY).body["messages"]
    assert one == [{"role": "system", "content": "Be brief.\n\nNo jokes."}, ASKED]
    assert check_chat({"model": "m", "messages": copy.deepcopy(messages)}, OPENAI).body["messages"] == messages


QWEN3_VL = (ROOT / "tests" / "support" / "modelfiles" / "goldens" / "qwen3_vl.jinja").read_text()
TEMPLATES = {
    "qwen3-vl": QWEN3_VL,
    "shapes-vl": (ROOT / "examples" / "shapes_vl_template.jinja").read_text(),
    "chatml": CHATML,
    "gemma": GEMMA,
    "idefics": IDEFICS,
}


@pytest.mark.parametrize("spec", [TRANSFORMERS, LMDEPLOY, VLLM], ids=lambda spec: str(spec.name))
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_no_template_leaves_out_an_instruction_wherever_it_stands(template: str, spec: EngineSpec) -> None:
    told = [
        {"role": "developer", "content": "ONE"},
        {"role": "user", "content": "hi"},
        {"role": "system", "content": [{"type": "text", "text": "TWO"}]},
        {"role": "assistant", "content": "hello"},
        {"role": "developer", "content": "THREE"},
        {"role": "user", "content": "bye"},
    ]
    for messages in (told, told[1:]):
        written = check_chat({"model": "m", "messages": copy.deepcopy(messages)}, spec).body["messages"]
        roles = [message["role"] for message in written]
        assert roles == ["system", "user", "assistant", "user"]
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in written]
        job = {"messages": parts, "tools": None, "add_generation_prompt": True}
        (prompt,) = render_chat_template(template, [job], {"bos_token": "<bos>"})
        assert prompt is not None
        words = [word for word in ("ONE", "TWO", "THREE") if word in str(messages)]
        assert [prompt.count(word) for word in words] == [1] * len(words)
        assert prompt.index("THREE") < prompt.index("hi")
    assert check_chat({"model": "m", "messages": copy.deepcopy(told)}, OPENAI).body["messages"] == told


@pytest.mark.parametrize("spec", [TRANSFORMERS, LMDEPLOY, VLLM], ids=lambda spec: str(spec.name))
def test_an_instruction_behind_an_answer_does_not_make_it_one_to_go_on_with(spec: EngineSpec) -> None:
    messages = [ASKED, {"role": "assistant", "content": "A"}, {"role": "system", "content": "S"}]
    with pytest.raises(ApiError, match="end with a user's message"):
        check_chat({"model": "m", "messages": messages}, spec)


def test_a_function_that_must_be_called_is_the_only_one_where_the_engine_takes_its_name_for_a_hint() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    choice = {"type": "function", "function": {"name": "g"}}
    body = {"model": "m", "messages": [ASKED], "tools": tools, "tool_choice": choice}
    spec = spec_at_url(LMDEPLOY)
    for named, expected in ((choice, ([tools[1]], "required", False)), ("auto", (tools, "auto", None))):
        written = check_chat(copy.deepcopy({**body, "tool_choice": named}), spec).body
        assert (written["tools"], written["tool_choice"], written.get("parallel_tool_calls")) == expected
    assert check_chat(copy.deepcopy(body), OPENAI).body == body


@pytest.mark.parametrize("spec", [OPENAI, spec_at_url(LMDEPLOY), TRANSFORMERS], ids=lambda spec: str(spec.name))
def test_a_function_that_must_be_called_is_among_the_tools(spec: EngineSpec) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    choice = {"type": "function", "function": {"name": "g"}}
    with pytest.raises(ApiError) as caught:
        check_chat({"model": "m", "messages": [ASKED], "tools": tools, "tool_choice": choice}, spec)
    assert (caught.value.param, caught.value.code) == ("tool_choice", "invalid_value")


def test_all_tokens_are_zero_where_minus_one_is_refused() -> None:
    body = {"model": "m", "messages": [ASKED], "top_k": -1}
    assert check_chat(copy.deepcopy(body), LMDEPLOY).body["top_k"] == 0
    assert check_chat(copy.deepcopy(body), OPENAI).body["top_k"] == -1


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_the_arguments_of_a_call_that_must_be_made_are_an_object_where_the_engine_leaves_them_open(choice: Any) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tools = [
        {"type": "function", "function": function} for function in ({"name": "f", "parameters": schema}, {"name": "g"})
    ]
    body = {"model": "m", "messages": [ASKED], "tools": tools, "tool_choice": choice}
    spec = spec_at_url(VLLM)
    first, second = (tool["function"] for tool in check_chat(copy.deepcopy(body), spec).body["tools"])
    assert first == {"name": "f", "parameters": schema, "strict": True}
    assert (second["strict"], second["parameters"]["type"]) == (True, "object")
    loose = {"name": "f", "strict": False, "parameters": schema}
    written = check_chat({**body, "tools": [{"type": "function", "function": loose}, tools[1]]}, spec).body["tools"]
    assert written[0]["function"] == loose, "the client's own word stands"
    for open_choice, other in (("auto", spec), (choice, OPENAI)):
        assert check_chat(copy.deepcopy({**body, "tool_choice": open_choice}), other).body["tools"] == tools


def test_how_much_to_think_is_up_to_the_model_of_a_vllm_that_somebody_else_started() -> None:
    body = {"model": "m", "messages": [ASKED], "reasoning_effort": "low"}
    assert check_chat(copy.deepcopy(body), spec_at_url(VLLM)).body == body
    with pytest.raises(ApiError, match="ignore it"):
        check_chat(body, VLLM)


def test_several_greedy_answers_are_asked_for_by_top_k_where_the_engine_refuses_them() -> None:
    body = {"model": "m", "messages": [ASKED], "temperature": 0, "n": 2}
    assert check_chat(copy.deepcopy(body), VLLM).body == {**body, "temperature": 1, "top_k": 1}
    assert check_chat(copy.deepcopy(body), LMDEPLOY).body == body
    for same in ({"n": 1}, {"temperature": 0.5}):
        assert check_chat(copy.deepcopy({**body, **same}), VLLM).body == {**body, **same}
    text = {"model": "m", "prompt": "p", "temperature": 0, "n": 2, "max_tokens": 5}
    assert check_completion(dict(text), VLLM).body == {**text, "temperature": 1, "top_k": 1}


@pytest.mark.parametrize("message", [{"role": "assistant", "content": []}, {"role": "tool", "content": []}])
def test_empty_lists_and_values_that_ask_for_nothing_are_served(message: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [ASKED, message, ASKED], "top_logprobs": 0}
    assert check_chat(body, OPENAI).body["messages"][1]["content"] == ""
