"""Fields beyond OpenAI's: an engine gets those that it honours, within bounds; all others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.engines.extra_fields import IGNORED, apply_extra_fields
from gateway.engines.spec import LMDEPLOY, OPENAI, TRANSFORMERS, VLLM, EngineSpec
from gateway.errors import ApiError

KNOWN = {"model", "messages", "temperature"}


def applied(spec: EngineSpec, max_pixels: int = 0, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", **fields}
    apply_extra_fields(body, KNOWN, spec.extra_fields, spec.name, max_pixels)
    return body


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session_id", 1),
        ("input_ids", [1]),
        ("image_data", "x"),
        ("media_io_kwargs", {}),
        ("chat_template", "{{ messages }}"),
        ("cache_salt", "x"),
        ("priority", 1),
        ("kv_transfer_params", {}),
        ("guided_json", {}),
        ("structured_outputs", {}),
        ("no_such_field", 1),
    ],
)
@pytest.mark.parametrize("spec", [LMDEPLOY, VLLM, TRANSFORMERS], ids=lambda spec: spec.name)
def test_what_an_engine_does_not_take_from_clients_is_refused_by_name(
    spec: EngineSpec, field: str, value: object
) -> None:
    with pytest.raises(ApiError) as refused:
        applied(spec, **{field: value})
    assert (refused.value.status, refused.value.param) == (400, field)
    assert applied(spec, **{field: None}) == {"model": "m"}, "null asks for nothing"


def test_what_vllm_reads_for_beam_search_only_is_refused() -> None:
    with pytest.raises(ApiError, match="length_penalty"):
        applied(VLLM, length_penalty=2.0)


@pytest.mark.parametrize("field", ["stop_token_ids", "continue_final_message", "guided_json", "structured_outputs"])
def test_what_lmdeploy_drops_in_silence_is_refused(field: str) -> None:
    with pytest.raises(ApiError, match=field):
        applied(LMDEPLOY, **{field: True})


def test_min_tokens_is_honoured_under_the_engines_own_name() -> None:
    assert applied(LMDEPLOY, min_tokens=3) == {"model": "m", "min_new_tokens": 3}
    assert applied(VLLM, min_tokens=3) == {"model": "m", "min_tokens": 3}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"template": "x"}}, "chat_template_kwargs.template"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"mm_processor_kwargs": {"device": "cpu"}}, "mm_processor_kwargs.device"),
        ({"mm_processor_kwargs": {"max_pixels": 5000}}, "mm_processor_kwargs.max_pixels"),
        ({"mm_processor_kwargs": {"max_pixels": True}}, "mm_processor_kwargs.max_pixels"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"repetition_ngram_size": 5000}, "repetition_ngram_size"),
    ],
)
def test_values_have_bounds(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        applied(LMDEPLOY, max_pixels=4096, **fields)
    assert refused.value.param == param


def test_an_image_may_be_made_smaller_than_the_model_would_and_thinking_switched() -> None:
    fields = {"mm_processor_kwargs": {"max_pixels": 4096}, "chat_template_kwargs": {"enable_thinking": False}}
    assert applied(LMDEPLOY, max_pixels=4096, **fields) == {"model": "m", **fields}


def test_fewer_pixels_cannot_be_asked_for_where_the_models_limit_is_not_known() -> None:
    with pytest.raises(ApiError, match="limit is not known here") as refused:
        applied(VLLM, mm_processor_kwargs={"max_pixels": 4096})
    assert refused.value.param == "mm_processor_kwargs.max_pixels"


def test_fields_that_ask_nothing_of_the_answer_are_taken_out() -> None:
    assert applied(TRANSFORMERS, **dict.fromkeys(IGNORED, "x")) == {"model": "m"}


def test_an_engine_that_is_not_known_gets_fields_but_those_that_steer_servers_are_in_its_table() -> None:
    assert applied(OPENAI, anything=[1]) == {"model": "m", "anything": [1]}
    assert {"session_id", "chat_template", "input_ids", "kv_transfer_params"} <= set(OPENAI.refused)
