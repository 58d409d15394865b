"""POST /v1/messages and /v1/messages/count_tokens as chat completions."""

from __future__ import annotations

import orjson

from gateway.api.anthropic.models import (
    AnthropicMessage,
    CountTokensRequest,
    ImageBlock,
    MessagesRequest,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from gateway.api.anthropic.writer import CountWriter, MessageWriter
from gateway.api.chat import EngineRequest
from gateway.api.tokenize import check_tokenize
from gateway.api.translation import Translation, Writer
from gateway.contract.fields import Object
from gateway.contract.validation import validate
from gateway.engines.spec import EngineSpec
from gateway.errors import ApiError, bad_request

# What chat completions call the same.
SAME = ("model", "max_tokens", "stream", "temperature", "top_p", "top_k")
# Fields that change no answer, or are translated; others are passed on: engines have their own.
KNOWN = frozenset(
    {
        *(*SAME, *MessagesRequest.model_fields),
        *("service_tier", "container", "context_management", "mcp_servers", "betas", "inference_geo", "cache_control"),
    }
)


def translate_messages(body: Object) -> Translation:
    """/v1/messages. Raises ApiError 400."""
    body = {field: value for field, value in body.items() if value is not None}
    request = validate(MessagesRequest, body)
    if (request.thinking or {}).get("type") not in (None, "disabled", "adaptive"):
        raise unsupported("thinking", "how much to think is not settable")
    for field in ("mcp_servers", "container"):
        if body.get(field):
            raise unsupported(field, "only tools of the client's own are called")
    translation = _translate(request, MessageWriter(request.model))
    chat = translation.body
    chat |= {field: body[field] for field in SAME if field in body}
    if request.stop_sequences:
        chat["stop"] = request.stop_sequences
    config = request.output_config
    form = config.format if config is not None and config.format is not None else request.output_format
    if form is not None:
        schema = {"name": "answer", "schema": form.schema_, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.stream:
        chat["stream_options"] = {"include_usage": True}
    user = (request.metadata or {}).get("user_id")
    if isinstance(user, str):
        chat["user"] = user
    chat |= {field: value for field, value in body.items() if field not in KNOWN}
    return translation


def unsupported(field: str, why: str) -> ApiError:
    return bad_request(f"'{field}' cannot be honoured: {why}.", field, "unsupported_parameter")


def translate_count(body: Object) -> Translation:
    """/v1/messages/count_tokens. Raises ApiError 400."""
    request = validate(CountTokensRequest, {field: value for field, value in body.items() if value is not None})
    translation = _translate(request, CountWriter())
    translation.body["model"] = request.model
    return translation


def check_count(body: Object, spec: EngineSpec) -> EngineRequest:
    """The messages and tools are counted as the chat template writes them."""
    counted: Object = {name: body[name] for name in ("model", "messages", "tools") if name in body}
    if body.get("tool_choice") == "none":
        counted.pop("tools", None)
    return check_tokenize(counted, spec)


def _translate(request: CountTokensRequest, writer: Writer) -> Translation:
    names = {"stop": "stop_sequences", "response_format": "output_config.format"}
    messages: list[Object] = []
    system = request.system
    if system:
        text = system if isinstance(system, str) else "\n".join(block.text for block in system)
        messages.append({"role": "system", "content": text})
    for index, message in enumerate(request.messages):
        _add_message(messages, message, f"messages[{index}]", names)
    return Translation({"messages": messages, **_tools(request)}, writer, names)


def _add_message(messages: list[Object], message: AnthropicMessage, location: str, names: dict[str, str]) -> None:
    """One or several: results of tools are messages of their own in a chat, before what the user says beside them."""
    if isinstance(message.content, str):
        names[f"messages[{len(messages)}]"] = location
        messages.append({"role": message.role, "content": message.content})
        return
    parts: list[Object] = []
    calls: list[Object] = []
    thoughts: list[str] = []
    origins: list[str] = []
    for index, block in enumerate(message.content):
        origin = f"{location}.content[{index}]"
        if isinstance(block, ToolResultBlock):
            names[f"messages[{len(messages)}]"] = origin
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)})
        elif isinstance(block, ToolUseBlock):
            arguments = orjson.dumps(block.input).decode()
            calls.append({"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}})
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif not isinstance(block, RedactedThinkingBlock):
            parts.append(_part(block))
            origins.append(origin)
    if not parts and not calls and message.role == "user":
        return  # it was results of tools alone
    at = len(messages)
    names[f"messages[{at}]"] = location
    names |= {f"messages[{at}].content[{index}]": origin for index, origin in enumerate(origins)}
    written: Object = {"role": message.role, "content": parts or None}
    if calls:
        written["tool_calls"] = calls
    if thoughts:
        written["reasoning_content"] = "\n".join(thoughts)
    messages.append(written)


def _part(block: TextBlock | ImageBlock) -> Object:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    source = block.source
    if source.type == "url":
        return {"type": "image_url", "image_url": {"url": source.url}}
    return {"type": "image_url", "image_url": {"url": f"data:{source.media_type or 'image/png'};base64,{source.data}"}}


def _result(block: ToolResultBlock) -> str | list[Object]:
    if isinstance(block.content, list):
        return [_part(part) for part in block.content]
    return block.content or ""


def _tools(request: CountTokensRequest) -> Object:
    written: Object = {}
    if request.tools:
        written["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    **({"description": tool.description} if tool.description else {}),
                    "parameters": tool.input_schema,
                    **({} if tool.strict is None else {"strict": tool.strict}),
                },
            }
            for tool in request.tools
        ]
    choice = request.tool_choice
    if choice is None or not request.tools:
        return written
    if choice.type == "tool":
        written["tool_choice"] = {"type": "function", "function": {"name": choice.name or ""}}
    else:
        written["tool_choice"] = "required" if choice.type == "any" else choice.type
    if choice.disable_parallel_tool_use is not None:
        written["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return written
