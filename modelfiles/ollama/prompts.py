"""The prompt that Ollama will send, beside the one the model was trained on.

Follows Ollama's template/template.go (Execute, collate), server/prompt.go (image tags) and model/renderers/qwen3vl.go.
An image is written as the tokens a Qwen model sees for it, which is also what the chat template writes.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

from modelfiles.folder.chat_template import ChatTemplateError, render_chat_template, to_hugging_face
from modelfiles.folder.gguf_model import GgufModel
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.language import gotemplate
from modelfiles.language.gotemplate import Action, Field, GoTemplateError, Pipe, Template

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
RENDERERS = ("qwen3-vl-instruct", "qwen3-vl-thinking")

# What Ollama gives a template for what a request does not set.
_UNSET: dict[str, Any] = {
    "Response": "", "Think": False, "IsThinkSet": False, "Query": "", "Document": "", "Instruction": "",
}  # fmt: skip
# The text that describes tools to Qwen's models.
_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time.",
        "parameters": {"type": "object", "required": ["tz"], "properties": {"tz": {"type": "string"}}},
    },
}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "get_time", "arguments": {"tz": "UTC"}}}],
}


@dataclass(frozen=True)
class Conversation:
    """Messages as Ollama's API has them; `images` is how many a message carries."""

    name: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


# What every generated Modelfile is compared on.
CASES = (
    Conversation("user", [{"role": "user", "content": "a"}]),
    Conversation("system", [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}]),
    Conversation("image", [{"role": "user", "content": "a", "images": 1}]),
    Conversation("two images", [{"role": "user", "content": "a", "images": 2}]),
    Conversation("image, Chinese", [{"role": "user", "content": "图里有什么", "images": 1}]),
    Conversation("image, newline", [{"role": "user", "content": "\na", "images": 1}]),
    Conversation("blanks", [{"role": "user", "content": " a \n"}]),
    Conversation(
        "turns",
        [
            {"role": "user", "content": "a", "images": 1},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    ),
    Conversation("tools", [{"role": "user", "content": "t?"}], [_TOOL]),
    Conversation(
        "tool result",
        [{"role": "user", "content": "t?"}, _CALL, {"role": "tool", "content": "12:00"}],
        [_TOOL],
    ),
)  # fmt: skip


def render_template(template: Template, conversation: Conversation, image: str = IMAGE) -> str:
    """What Ollama makes of a TEMPLATE. Raises GoTemplateError."""
    messages = _with_image_tags(conversation.messages, image)
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    merged: list[dict[str, Any]] = []
    for message in messages:
        if merged and message["role"] == merged[-1]["Role"] != "tool":
            merged[-1]["Content"] += "\n\n" + message["content"]
        else:
            merged.append(_go_message(message))
    if gotemplate.fields(template) & {"Messages", "Document"}:
        data = {"System": system, "Messages": merged, "Tools": conversation.tools, **_UNSET}
        return gotemplate.execute(template, data)
    return _render_legacy(template, merged)


def render_renderer(name: str, conversation: Conversation, image: str = IMAGE) -> str:
    """What Ollama's built-in RENDERER `name` makes of a conversation. Raises GoTemplateError for one not ported.

    One space goes between the images and a text that does not begin with a blank (measured with 0.33).
    """
    if name not in RENDERERS:
        raise GoTemplateError(
            f"the renderer {name!r} is built into Ollama; `lensmith modelfile verify` can ask a server"
        )
    messages = conversation.messages
    parts: list[str] = []
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    if conversation.tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in conversation.tools)
        opening = system + "\n\n" if system else ""
        parts.append(f"<|im_start|>system\n{opening}{_TOOLS_BEFORE}{listed}{_TOOLS_AFTER}<|im_end|>\n")
    elif system:
        parts.append(f"<|im_start|>system\n{system}<|im_end|>\n")
    for index, message in enumerate(messages):
        role, content = message["role"], message.get("content", "")
        if message.get("images"):
            gap = "" if not content or content[0].isspace() else " "
            content = image * _count(message) + gap + content
        if role == "user" or (role == "system" and index):
            parts.append(f"<|im_start|>{role}\n{content}<|im_end|>\n")
        elif role == "assistant":
            calls = [
                f'<tool_call>\n{{"name": "{call["function"]["name"]}", "arguments": '
                f"{json.dumps(call['function']['arguments'], ensure_ascii=False)}}}\n</tool_call>"
                for call in message.get("tool_calls", [])
            ]
            parts.append("<|im_start|>assistant\n" + "\n".join([content] * bool(content) + calls))
            parts.append("" if index == len(messages) - 1 else "<|im_end|>\n")
        elif role == "tool":
            before = messages[index - 1]["role"] if index else ""
            after = messages[index + 1]["role"] if index + 1 < len(messages) else ""
            parts.append("" if before == "tool" else "<|im_start|>user")
            parts.append(f"\n<tool_response>\n{content}\n</tool_response>")
            parts.append("" if after == "tool" else "<|im_end|>\n")
    if not messages or messages[-1]["role"] != "assistant":
        parts.append("<|im_start|>assistant\n" + ("<think>\n" if name.endswith("thinking") else ""))
    return "".join(parts)


def render_model(model: ModelFolder | GgufModel, conversations: list[Conversation]) -> list[str | None]:
    """The same conversations through the model's own chat template, None for one that it refuses.

    Raises ChatTemplateError if there is no template or it renders none of them.
    """
    template = model.chat_template
    if template is None:
        raise ChatTemplateError("the model has no chat template.")
    return render_chat_template(
        template,
        [
            {
                "messages": to_hugging_face(conversation.messages),
                "tools": conversation.tools,
                "add_generation_prompt": conversation.messages[-1]["role"] != "assistant",
            }
            for conversation in conversations
        ],
        model.special_tokens,
    )


def _render_legacy(template: Template, messages: list[dict[str, Any]]) -> str:
    """A template of .System, .Prompt and .Response runs once per exchange and stops at the last .Response."""
    if not gotemplate.fields(template) & {"Response"}:
        response = Action(Pipe([[Field(("Response",))]]))
        template = Template([*template.nodes, response], template.defined)
    parts: list[str] = []
    turn = {**_UNSET, "System": "", "Prompt": ""}
    for message in messages:
        slot = {"system": "System", "user": "Prompt", "assistant": "Response"}.get(message["Role"])
        if slot is None:
            continue
        if turn["Response"] or (slot == "System" and turn["Prompt"]):
            parts.append(gotemplate.execute(template, turn))
            turn = {**_UNSET, "System": "", "Prompt": ""}
        turn[slot] = message["Content"]
    marker = "\x00response\x00"
    ending = turn["Response"] if messages and messages[-1]["Role"] == "assistant" else ""
    last = gotemplate.execute(template, turn | {"Response": marker}).partition(marker)[0]
    return "".join(parts) + last + ending


def _with_image_tags(messages: list[dict[str, Any]], image: str) -> list[dict[str, Any]]:
    messages = copy.deepcopy(messages)
    for message in messages:
        message["content"] = image * _count(message) + message.get("content", "")
    return messages


def _count(message: dict[str, Any]) -> int:
    images = message.get("images") or 0
    return images if isinstance(images, int) else len(images)


def _go_message(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {"Function": {"Name": call["function"]["name"], "Arguments": call["function"]["arguments"]}}
        for call in message.get("tool_calls", [])
    ]
    message_fields = {"Role": message["role"], "Content": message["content"], "ToolCalls": calls, "Images": []}
    return message_fields | {"Thinking": message.get("thinking", ""), "ToolName": message.get("tool_name", "")}
