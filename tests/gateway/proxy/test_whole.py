"""The whole line on this machine: `lensmith serve FOLDER`, the embedded engine, and the official client."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import time
from collections.abc import Iterator

import httpx
import jsonschema_rs
import ollama
import openai
import psutil
import pytest
from PIL import Image

from gateway.runtime.exposition import FRESH_SECONDS
from tests.support.gateway.processes import Process, lensmith_serve, until
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the embedded engine needs: pip install 'lensmith[cpu]'"
)


@pytest.fixture(scope="module")
def served() -> Iterator[Process]:
    folder = ROOT / "examples" / "shapes-vl"
    with lensmith_serve(
        str(folder), "--engine", "transformers", "--model-name", "shapes", OMP_NUM_THREADS="1"
    ) as gateway:
        until("the engine is ready", lambda: is_ready(gateway))
        yield gateway


def is_ready(gateway: Process) -> bool:
    answer = gateway.get("/ready")
    return answer is not None and answer.status_code == 200


@pytest.fixture(scope="module")
def client(served: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ollama_client(served: Process) -> Iterator[ollama.Client]:
    with ollama.Client(host=served.url) as client:
        yield client


def question(*images: Image.Image, format: str = "PNG") -> list:
    parts: list[dict] = []
    for image in images:
        file = io.BytesIO()
        image.save(file, format)
        data = base64.b64encode(file.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/{format.lower()};base64,{data}"}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


PICTURE = Image.new("RGB", (96, 96), "red")


def test_an_image_is_answered_alike_plain_and_streamed(client: openai.OpenAI) -> None:
    fields = {"model": "shapes", "messages": question(PICTURE), "temperature": 0, "max_tokens": 12}
    plain = client.chat.completions.create(**fields)
    assert plain.choices[0].message.content
    assert plain.usage.prompt_tokens > 9, "the image counts"
    chunks = list(client.chat.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (Image.new("RGB", (1, 1)), "PNG"),
        (Image.new("RGB", (1, 150)), "JPEG"),
        (Image.new("RGB", (1500, 1100)), "JPEG"),
        (Image.new("RGBA", (60, 60)), "WEBP"),
        (Image.new("P", (60, 60)), "GIF"),
        (Image.new("I;16", (60, 60)), "PNG"),
        (Image.new("CMYK", (60, 60)), "JPEG"),
    ],
)
def test_odd_images_are_answered(client: openai.OpenAI, image: Image.Image, format: str) -> None:
    messages = question(image, PICTURE, format=format) if image.mode == "RGB" else question(image, format=format)
    answer = client.chat.completions.create(model="shapes", messages=messages, max_tokens=2, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 1


def test_a_prompt_over_the_context_length_is_the_engines_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.chat.completions.create(model="shapes", messages=[{"role": "user", "content": "red circle " * 20_000}])
    assert client.chat.completions.create(model="shapes", messages=question(PICTURE), max_tokens=1).choices


def test_stop_strings_and_n_are_the_engines_own(client: openai.OpenAI) -> None:
    fields = {"model": "shapes", "messages": question(PICTURE), "temperature": 0, "max_tokens": 12}
    text = client.chat.completions.create(**fields).choices[0].message.content
    stopped = client.chat.completions.create(**fields, stop=text[1:3], n=2)
    assert [choice.message.content for choice in stopped.choices] == [text[:1]] * 2


def test_the_engines_own_metrics_stand_beside_the_gateways(served: Process, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="shapes", messages=question(PICTURE), max_tokens=1)
    time.sleep(FRESH_SECONDS)
    assert served.metric("lensmith_engine_metrics_up") == 1
    assert served.metric("lensmith_engine_batch_size_count", engine="shapes/transformers-0") >= 1
    assert served.metric("lensmith_engine_images_total", engine="shapes/transformers-0") >= 1


def test_all_apis_give_the_same_answer(served: Process, client: openai.OpenAI, ollama_client: ollama.Client) -> None:
    messages = question(PICTURE)
    text = client.chat.completions.create(model="shapes", messages=messages, temperature=0, max_tokens=8)
    expected = text.choices[0].message.content
    uri = messages[0]["content"][0]["image_url"]["url"]
    content = [{"type": "input_image", "image_url": uri}, {"type": "input_text", "text": "What is this?"}]
    response = client.responses.create(
        model="shapes", input=[{"role": "user", "content": content}], temperature=0, max_output_tokens=8
    )
    assert response.output_text == expected
    asked = {"model": "shapes", "images": [uri.split(",")[1]], "options": {"temperature": 0, "num_predict": 8}}
    given = ollama_client.generate(prompt="What is this?", **asked)
    assert given.response == expected
    counted = httpx.post(served.url + "/tokenize", json={"model": "shapes", "messages": messages}).json()
    assert counted["count"] == len(counted["tokens"]) == response.usage.input_tokens == given.prompt_eval_count
    words = client.completions.create(model="shapes", prompt="red circle", temperature=0, max_tokens=3)
    assert words.usage.completion_tokens <= 3


SHAPE = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "square"]}, "size": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["shape", "size"],
    "additionalProperties": False,
}


def test_all_apis_give_json_of_a_schema(client: openai.OpenAI, ollama_client: ollama.Client) -> None:
    valid = jsonschema_rs.validator_for(SHAPE).validate
    messages = question(PICTURE)
    form = {"type": "json_schema", "json_schema": {"name": "shape", "strict": True, "schema": SHAPE}}
    fields: dict = {
        "model": "shapes",
        "messages": messages,
        "temperature": 0,
        "max_tokens": 60,
        "response_format": form,
    }
    expected = client.chat.completions.create(**fields).choices[0].message.content
    valid(json.loads(expected))
    streamed = client.chat.completions.create(**fields, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == expected
    uri = messages[0]["content"][0]["image_url"]["url"]
    content = [{"type": "input_image", "image_url": uri}, {"type": "input_text", "text": "What is this?"}]
    response = client.responses.create(
        model="shapes",
        input=[{"role": "user", "content": content}],
        temperature=0,
        max_output_tokens=60,
        text={"format": {"type": "json_schema", "name": "shape", "strict": True, "schema": SHAPE}},
    )
    assert response.output_text == expected
    given = ollama_client.chat(
        model="shapes",
        messages=[{"role": "user", "content": "What is this?", "images": [uri.split(",")[1]]}],
        format=SHAPE,
        options={"temperature": 0, "num_predict": 60},
    )
    assert given.message.content == expected


def test_a_schema_that_cannot_be_honoured_is_named_as_each_api_names_it(
    client: openai.OpenAI, ollama_client: ollama.Client
) -> None:
    schema = {"type": "object", "not": {"required": ["a"]}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as chat:
        client.chat.completions.create(model="shapes", messages=question(PICTURE), response_format=form)
    assert chat.value.param == "response_format"
    with pytest.raises(openai.BadRequestError) as responses:
        client.responses.create(
            model="shapes", input="Hi", text={"format": {"type": "json_schema", "name": "x", "schema": schema}}
        )
    assert responses.value.param == "text.format"
    with pytest.raises(ollama.ResponseError, match="not"):
        ollama_client.generate(model="shapes", prompt="Hi", format=schema)


def test_all_apis_call_tools(client: openai.OpenAI, ollama_client: ollama.Client) -> None:
    function = {"name": "note", "description": "Keep it.", "parameters": SHAPE}
    fields: dict = {"model": "shapes", "messages": question(PICTURE), "temperature": 0, "max_tokens": 90}
    fields |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    fields |= {"parallel_tool_calls": False}
    choice = client.chat.completions.create(**fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    jsonschema_rs.validator_for(SHAPE).validate(json.loads(call.function.arguments))
    response = client.responses.create(
        model="shapes",
        input="What is this?",
        temperature=0,
        max_output_tokens=90,
        tools=[{"type": "function", **function}],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    [item] = response.output
    assert (item.type, item.name) == ("function_call", "note")
    jsonschema_rs.validator_for(SHAPE).validate(json.loads(item.arguments))
    result = {"role": "tool", "tool_call_id": call.id, "content": question(PICTURE)[0]["content"]}
    messages = [*fields["messages"], choice.message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(**{**fields, "messages": messages, "tool_choice": "none", "max_tokens": 4})
    assert after.choices[0].message.content
    told = ollama_client.chat(
        model="shapes",
        messages=[{"role": "user", "content": "What is this?"}],
        tools=[{"type": "function", "function": function}],
        options={"num_predict": 4, "temperature": 0},
    )
    assert told.message.role == "assistant"


def test_the_engine_killed_while_idle_comes_back(served: Process, client: openai.OpenAI) -> None:
    (engine,) = (
        process
        for process in psutil.Process(served.process.pid).children()
        if "gateway.embedded" in " ".join(process.cmdline())
    )
    engine.kill()
    assert "SIGKILL" in served.wait_until("/ready", 503).json()["reason"]
    until("its metrics are gone", lambda: "lensmith_engine_batch_size" not in httpx.get(served.url + "/metrics").text)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="shapes", messages=question(PICTURE))
    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
    until("the engine is ready", lambda: is_ready(served))
    assert client.chat.completions.create(model="shapes", messages=question(PICTURE), max_tokens=1).choices
    assert httpx.get(served.url + "/health").status_code == 200
