"""Ollama's /api/chat and /api/generate as chat completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.api.ollama.writer import ChatWriter, GenerateWriter, OllamaWriter
from gateway.api.translation import Object, Translation
from gateway.errors import bad_request

ROLES = ("system", "user", "assistant", "tool")

# Ollama's options and the fields of chat completions that mean the same.
OPTIONS: Mapping[str, str] = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
# How Ollama loads a model and holds its context: the model is loaded here already. And what only counts with mirostat.
NO_EFFECT = frozenset(
    {
        *("mirostat_tau", "mirostat_eta"),
        *("num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict"),
        *("use_mmap", "use_mlock", "low_vram", "numa", "f16_kv", "logits_all", "vocab_only", "embedding_only"),
    }
)
# Ways to sample that no engine behind the gateway has, with the values that turn them off.
OFF: Mapping[str, tuple[object, ...]] = {
    "typical_p": (1,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "penalize_newline": (True,),
    "repeat_last_n": (-1, 64),  # the engines' repetition penalty sees the whole context; 64 is Ollama's default
}
# Fields that change no answer, because models stay loaded and prompts are never cut.
IGNORED = frozenset({"keep_alive", "truncate", "shift", "_debug_render_only"})


def translate_chat(body: Object) -> Translation:
    """/api/chat. Raises ApiError 400."""
    body = _without_null(body)
    names: dict[str, str] = {}
    messages = body.pop("messages", [])
    if not isinstance(messages, list):
        raise bad_request("'messages' must be a list.", "messages", "invalid_type")
    calls = ToolCalls()
    chat = [_message(message, at, names, calls) for at, message in enumerate(messages)]
    writer = ChatWriter(_model(body))
    return _translation(body, chat, writer, names, bool(messages))


def translate_generate(body: Object) -> Translation:
    """/api/generate. Raises ApiError 400."""
    body = _without_null(body)
    for field, why in (
        ("raw", "prompts without a chat template are served at /v1/completions"),
        ("template", "the model's own chat template is used"),
        ("suffix", "there is no model for filling in the middle"),
        ("context", "send the conversation's messages to /api/chat instead"),
    ):
        if body.pop(field, None):
            raise bad_request(f"'{field}' cannot be honoured: {why}.", field, "unsupported_parameter")
    prompt, system, images = body.pop("prompt", ""), body.pop("system", ""), body.pop("images", [])
    if not isinstance(prompt, str):
        raise bad_request("'prompt' must be a string.", "prompt", "invalid_type")
    if not isinstance(system, str):
        raise bad_request("'system' must be a string.", "system", "invalid_type")
    messages: list[Object] = [{"role": "system", "content": system}] if system else []
    names: dict[str, str] = {}
    content = _content(prompt, images, "images", f"messages[{len(messages)}].content", names)
    messages.append({"role": "user", "content": content})
    return _translation(body, messages, GenerateWriter(_model(body)), names, bool(prompt or images))


def _without_null(body: Object) -> Object:
    return {field: value for field, value in body.items() if value is not None}


def _model(body: Object) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("'model' is required and must be a string.", "model", "missing_required_parameter")
    return model


def _translation(
    body: Object, messages: list[Object], writer: OllamaWriter, names: dict[str, str], asks: bool
) -> Translation:
    """The fields that both have. `asks`: whether there is a prompt; without one Ollama only loads the model."""
    stream = body.pop("stream", True)
    if not isinstance(stream, bool):
        raise bad_request("'stream' must be true or false.", "stream", "invalid_type")
    if body.pop("think", False):
        raise bad_request("'think' cannot be honoured: leave it out.", "think", "unsupported_parameter")
    for field in IGNORED:
        body.pop(field, None)
    chat: Object = {**_options(body.pop("options", {}), names)}
    form = body.pop("format", "")
    if form == "json":
        chat["response_format"] = {"type": "json_object"}
    elif isinstance(form, dict):
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}
    elif form != "":
        raise bad_request("'format' must be \"json\" or a JSON schema.", "format")
    names["response_format"] = "format"
    if body.get("tools") == []:  # its Python client always sends them
        del body["tools"]
    # What is left are Ollama's `tools`, `logprobs` and `top_logprobs`, which are OpenAI's, and fields we don't know.
    chat |= body
    chat["stream"] = stream
    if stream:
        chat["stream_options"] = {"include_usage": True}
    chat["messages"] = messages or [{"role": "user", "content": ""}]
    return Translation(chat, writer, names, None if asks else writer.loaded())


def _options(options: object, names: dict[str, str]) -> Object:
    if not isinstance(options, dict):
        raise bad_request("'options' must be an object.", "options", "invalid_type")
    fields: Object = {}
    for option, value in options.items():
        if value is None or option in NO_EFFECT:
            continue
        if option in OFF:
            off = option == "repeat_last_n" and options.get("repeat_penalty") in (None, 1)
            if not off and value not in OFF[option]:
                where = f"options.{option}"
                raise bad_request(f"'{where}' cannot be honoured by any engine.", where, "unsupported_parameter")
        elif option == "num_predict" and isinstance(value, int) and value < 0:
            pass  # no limit
        elif option == "stop" and value == []:
            pass
        else:
            field = OPTIONS.get(option, option)
            fields[field] = value
            names[field] = f"options.{option}"
    return fields


def _message(message: object, at: int, names: dict[str, str], calls: ToolCalls) -> Object:
    where = f"messages[{at}]"
    if not isinstance(message, dict):
        raise bad_request(f"'{where}' must be an object.", where, "invalid_type")
    message = _without_null(message)
    role, content = message.get("role"), message.get("content", "")
    if role not in ROLES:
        raise bad_request(f"'{where}.role' must be one of {', '.join(ROLES)}.", f"{where}.role")
    if not isinstance(content, str):
        raise bad_request(f"'{where}.content' must be a string.", f"{where}.content", "invalid_type")
    written: Object = {"role": role}
    images = message.get("images", [])
    written["content"] = _content(content, images, f"{where}.images", f"{where}.content", names)
    if message.get("tool_calls"):
        written["tool_calls"] = calls.made(message["tool_calls"], f"{where}.tool_calls")
    if role == "tool":
        written["tool_call_id"] = message.get("tool_call_id") or calls.answered()
    return written


def _content(text: str, images: object, where: str, chat_where: str, names: dict[str, str]) -> str | list[Object]:
    """A message's content: the images come first, as in Ollama's prompts."""
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise bad_request(f"'{where}' must be a list of base64 strings.", where, "invalid_type")
    if not images:
        return text
    parts: list[Object] = []
    for at, image in enumerate(images):
        names[f"{chat_where}[{at}]"] = f"{where}[{at}]"
        parts.append({"type": "image_url", "image_url": {"url": _data_uri(image)}})
    return [*parts, {"type": "text", "text": text}] if text else parts


def _data_uri(image: str) -> str:
    """Raw base64 as a `data:` URI. Checked as every image is: the bytes say what kind of file it is."""
    return image if image[:5].lower() == "data:" else f"data:;base64,{image}"


class ToolCalls:
    """Ids for the tool calls in a conversation: OpenAI's have them, Ollama's are answered in order."""

    def __init__(self) -> None:
        self._made = 0
        self._open: list[str] = []

    def made(self, calls: object, where: str) -> list[Object]:
        if not isinstance(calls, list):
            raise bad_request(f"'{where}' must be a list.", where, "invalid_type")
        return [self._call(call, f"{where}[{at}]") for at, call in enumerate(calls)]

    def answered(self) -> str:
        """The id of the oldest call without an answer."""
        return self._open.pop(0) if self._open else f"call_{self._made}"

    def _call(self, call: Any, where: str) -> Object:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request(f'\'{where}\' must be {{"function": {{"name": …, "arguments": …}}}}.', where)
        self._made += 1
        name = call.get("id") or f"call_{self._made}"
        self._open.append(name)
        arguments = orjson.dumps(function.get("arguments") or {}).decode()
        return {"id": name, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
