"""POST /v1/responses as a chat completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.responses.writer import ResponseWriter
from gateway.api.translation import Object, Translation
from gateway.api.unsupported import HARMLESS
from gateway.errors import ApiError, bad_request

# Fields of the Responses API that cannot be honoured, and values of them that ask for nothing.
NOWHERE: Mapping[str, str] = {
    "background": "responses are answered at once",
    "conversation": "nothing is stored; send the conversation as 'input'",
    "previous_response_id": "nothing is stored; send the conversation as 'input'",
    "store": "nothing is stored; leave it out or set it to false",
    "prompt": "there are no stored prompts",
    "max_tool_calls": "only functions are called, and those by the client",
    "context_management": "nothing is compacted",
    "moderation": "nothing is moderated",
    "image": "only text is generated",
}
NO_WISH: Mapping[str, tuple[object, ...]] = {"background": (False,), "context_management": ([],)}
# What cannot change an answer here.
IGNORED = (
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"),
    *("access_programs", "service_tier"),
)
# Fields that have the same name and meaning in a chat completion.
SAME = ("model", "stream", "temperature", "top_p", "parallel_tool_calls", "user", "metadata")
# All of its fields. Others are passed on: engines have their own.
FIELDS = frozenset(
    {
        *("input", "instructions", "max_output_tokens", "text", "truncation", "reasoning", "include", "top_logprobs"),
        *("tools", "tool_choice", "stream_options", *NOWHERE, *IGNORED, *SAME),
    }
)
ROLES = ("user", "assistant", "system", "developer")
NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "logprobs": "include",
}


def translate_response(body: Object) -> Translation:
    """/v1/responses. Raises ApiError 400."""
    body = {field: value for field, value in body.items() if value is not None}
    for field, why in NOWHERE.items():
        if field in body and body[field] not in (*HARMLESS.get(field, ()), *NO_WISH.get(field, ())):
            raise unsupported(field, why)
    if body.get("truncation", "disabled") != "disabled":
        raise unsupported("truncation", "prompts are never cut")
    _check_reasoning(body.get("reasoning", {}))
    if body.get("service_tier", "auto") not in HARMLESS["service_tier"]:
        raise unsupported("service_tier", "there is only one service tier")
    instructions = body.get("instructions", "")
    if not isinstance(instructions, str):
        raise bad_request("'instructions' must be a string.", "instructions", "invalid_type")
    conversation = Conversation(instructions)
    conversation.read(body.get("input"))
    chat: Object = {field: body[field] for field in SAME if field in body}
    chat |= {"messages": conversation.messages, **_text(body.get("text", {})), **_log_probs(body), **_tools(body)}
    if "max_output_tokens" in body:
        chat["max_tokens"] = body["max_output_tokens"]
    if body.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    chat |= {field: value for field, value in body.items() if field not in FIELDS}
    return Translation(chat, ResponseWriter(body), {**NAMES, **conversation.names})


def unsupported(field: str, why: str) -> ApiError:
    return bad_request(f"'{field}' cannot be honoured: {why}.", field, "unsupported_parameter")


def _check_reasoning(reasoning: object) -> None:
    if not isinstance(reasoning, dict):
        raise bad_request("'reasoning' must be an object.", "reasoning", "invalid_type")
    if reasoning.get("effort") not in (None, "none"):
        raise unsupported("reasoning", "how much to think is not settable")


def _text(text: object) -> Object:
    """`text.format` as `response_format`."""
    if not isinstance(text, dict):
        raise bad_request("'text' must be an object.", "text", "invalid_type")
    if text.get("verbosity") not in (None, "medium"):
        raise unsupported("text.verbosity", "no engine has it")
    form = text.get("format")
    if form is None:
        return {}
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = {field: value for field, value in form.items() if field != "type"}
        form = {"type": "json_schema", "json_schema": schema}
    return {"response_format": form}


def _log_probs(body: Object) -> Object:
    include = body.get("include", [])
    if not isinstance(include, list):
        raise bad_request("'include' must be a list.", "include", "invalid_type")
    # There is never any reasoning, so its encrypted form is complete without doing anything.
    others = [item for item in include if item not in ("message.output_text.logprobs", "reasoning.encrypted_content")]
    if others:
        raise unsupported("include", "only message.output_text.logprobs is there")
    if "message.output_text.logprobs" in include:
        return {"logprobs": True, "top_logprobs": body.get("top_logprobs", 0)}
    if body.get("top_logprobs"):
        message = "'top_logprobs' needs 'include' to have message.output_text.logprobs."
        raise bad_request(message, "top_logprobs")
    return {}


def _tools(body: Object) -> Object:
    """Functions; OpenAI's own tools are not here. Raises ApiError 400."""
    tools = body.get("tools", [])
    if not isinstance(tools, list):
        raise bad_request("'tools' must be a list.", "tools", "invalid_type")
    written = []
    for at, tool in enumerate(tools):
        where = f"tools[{at}]"
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise bad_request(f"'{where}' must be an object with a type.", where, "invalid_type")
        if tool["type"] != "function":
            raise unsupported(f"{where}.type", "only functions can be called")
        fields = ("name", "description", "parameters", "strict")
        function = {field: tool[field] for field in fields if tool.get(field) is not None}
        written.append({"type": "function", "function": function})
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    return {**({"tools": written} if written else {}), **({} if choice is None else {"tool_choice": choice})}


class Conversation:
    """The items of `input` as messages; `names` says which item each message came from."""

    def __init__(self, instructions: str) -> None:
        self.messages: list[Object] = [{"role": "system", "content": instructions}] if instructions else []
        self.names: dict[str, str] = {}

    def read(self, given: object) -> None:
        """Raises ApiError 400."""
        if isinstance(given, str):
            self.messages.append({"role": "user", "content": given})
            return
        if not isinstance(given, list) or not given:
            raise bad_request(
                "'input' is required and must be a string or a list of items.", "input", "missing_required_parameter"
            )
        for at, item in enumerate(given):
            where = f"input[{at}]"
            if not isinstance(item, dict):
                raise bad_request(f"'{where}' must be an object.", where, "invalid_type")
            kind = item.get("type", "message")
            if kind == "message":
                self._message(item, where)
            elif kind == "function_call":
                self._call(item, where)
            elif kind == "function_call_output":
                self._output(item, where)
            elif kind != "reasoning":  # no model here reads it again
                raise unsupported(f"{where}.type", "it must be message, function_call or function_call_output")

    def _add(self, message: Object, where: str) -> None:
        self.names[f"messages[{len(self.messages)}]"] = where
        self.messages.append(message)

    def _message(self, item: Object, where: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            raise bad_request(f"'{where}.role' must be one of {', '.join(ROLES)}.", f"{where}.role")
        if isinstance(content, list):
            at = len(self.messages)
            content = [
                self._part(part, f"{where}.content[{number}]", f"messages[{at}].content[{number}]")
                for number, part in enumerate(content)
            ]
        self._add({"role": role, "content": content}, where)

    def _part(self, part: Any, where: str, chat_where: str) -> Object:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text"):
            self.names[f"{chat_where}.text"] = f"{where}.text"
            return {"type": "text", "text": part.get("text")}
        if kind == "refusal":
            return {"type": "refusal", "refusal": part.get("refusal")}
        if kind == "input_image":
            if part.get("file_id") is not None:
                raise unsupported(f"{where}.file_id", "nothing is stored; send the image in 'image_url'")
            self.names[f"{chat_where}.image_url.detail"] = f"{where}.detail"
            return {"type": "image_url", "image_url": {"url": part.get("image_url"), "detail": part.get("detail")}}
        raise bad_request(f"'{where}.type' must be input_text or input_image; nothing else is served.", f"{where}.type")

    def _call(self, item: Object, where: str) -> None:
        texts = [item.get(field) for field in ("call_id", "name", "arguments")]
        if not all(isinstance(text, str) for text in texts):
            raise bad_request(f"'{where}' must have a call_id, a name and arguments, all strings.", where)
        call_id, name, arguments = texts
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages[-1].setdefault("tool_calls", []).append(call)
        else:
            self._add({"role": "assistant", "content": None, "tool_calls": [call]}, where)

    def _output(self, item: Object, where: str) -> None:
        output = item.get("output")
        if isinstance(output, list):
            parts = [part.get("text") if isinstance(part, dict) else None for part in output]
            output = "".join(part for part in parts if isinstance(part, str)) if all(parts) else None
        if not isinstance(output, str) or not isinstance(item.get("call_id"), str):
            raise bad_request(f"'{where}' must have a call_id and an output of text.", where)
        self._add({"role": "tool", "tool_call_id": item["call_id"], "content": output}, where)
