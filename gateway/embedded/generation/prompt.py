"""From messages to what the model takes: images decoded, chat template rendered, everything tokenised.

Text of the messages that spells a control token (`<|im_start|>`, `<|image_pad|>`, ...) is tokenised as the plain text
that it is: transformers' `sanitize_control_tokens` marks it before the template is rendered. So it can neither open a
turn nor stand for an image.
"""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image

from gateway.embedded.protocol import GenerationRequest
from gateway.errors import ApiError, bad_request
from modelfiles.images.pixels import upright_rgb


@dataclass(frozen=True)
class Prompt:
    """The processor's tensors for one request: per-token ones are [1, length], image ones [patches or images, ...]."""

    features: dict[str, torch.Tensor]
    images: int

    @property
    def ids(self) -> torch.Tensor:
        """[length]"""
        return self.features["input_ids"][0]

    @property
    def length(self) -> int:
        return len(self.ids)


def make_prompt(processor: Any, request: GenerationRequest) -> Prompt:
    """Runs the chat template and the image processor, or neither for a text completion. Raises ApiError 400."""
    if request.prompt is not None:
        return text_prompt(processor, request.prompt)
    images = 0
    messages = []
    for message in request.messages:
        content = []
        for part in message["content"]:
            if part["type"] == "image":
                images += 1
                part = {"type": "image", "image": decode_image(part["image"], part["where"])}
            content.append(part)
        messages.append({**message, "content": content})
    tools = [tool.template for tool in request.tools]
    refuse_control_tokens(processor, tools, messages)
    try:
        features = processor.apply_chat_template(
            messages,
            tools=tools or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,
        )
    except TemplateError as error:
        raise bad_request(f"The model's chat template refused the messages: {str(error)[:200]}", "messages") from None
    except ValueError as error:
        raise bad_request(f"The model's processor refused the messages: {str(error)[:200]}", "messages") from None
    return Prompt(dict(features), images)


def refuse_control_tokens(processor: Any, tools: list[dict[str, Any]], messages: list[dict[str, Any]]) -> None:
    """Raises ApiError 400 for tools that the chat template would drop, and for names that hold a control token.

    transformers marks control tokens in values, but not in the names of a JSON object's members.
    """
    if tools and re.search(r"\btools\b", str(processor.chat_template)) is None:
        raise bad_request("'tools' are not known to this model's chat template.", "tools", "unsupported_parameter")
    control = tuple(processor.tokenizer.get_added_vocab())
    calls = [message.get("tool_calls") for message in messages]
    for param, value in (("tools", tools), ("messages", calls)):
        if any(token in name for name in member_names(value) for token in control):
            raise bad_request(f"'{param}' holds a control token of the model in the name of a member.", param)


def member_names(value: Any) -> Iterator[str]:
    """The names of all members of all objects in decoded JSON."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from member_names(item)


def text_prompt(processor: Any, text: str) -> Prompt:
    """A text completion's prompt, whose control tokens are what they say: it may hold a rendered chat template.

    Raises ApiError 400, also for tokens that stand for an image or a video, because there is none.
    """
    try:
        prompt = Prompt(dict(processor(text=[text], return_tensors="pt")), 0)
    except ValueError as error:
        raise bad_request(f"The model's processor refused the prompt: {str(error)[:200]}", "prompt") from None
    if prompt.length == 0:
        raise bad_request("'prompt' has no tokens.", "prompt")
    return prompt


def decode_image(uri: str, where: str) -> Image.Image:
    """The image of a base64 `data:` URI, upright, in RGB. Raises ApiError 400."""
    try:
        data = binascii.a2b_base64(uri[uri.index(",") + 1 :], strict_mode=True)
    except ValueError:
        raise bad_request(f"The image at {where} is not valid base64.", where, "invalid_image") from None
    try:
        # Pillow refuses images of more than 179 million pixels before it decodes them.
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "GIF"]) as image:
            return upright_rgb(image)
    except Exception:  # Pillow raises many kinds, and its texts are not for clients
        message = (
            f"The image at {where} cannot be decoded: it is damaged, too large, or no PNG, JPEG, WebP or GIF file."
        )
        raise bad_request(message, where, "invalid_image") from None


def answer_limit(prompt: Prompt, request: GenerationRequest, context: int) -> int:
    """The most tokens the answer may have: as wanted, else what the context length leaves. Raises ApiError 400."""
    wanted = request.max_tokens
    field, verb = ("messages", "have") if request.prompt is None else ("prompt", "has")
    if prompt.length + (wanted or 1) <= context:
        return wanted or context - prompt.length
    asked = "at least 1 token" if wanted is None else f"{wanted} tokens"
    message = (
        f"This model's maximum context length is {context} tokens, but the {field} {verb} {prompt.length} tokens and "
        f"{asked} of answer were asked for. Shorten the {field} or ask for a shorter answer."
    )
    raise ApiError(
        400, message, code="context_length_exceeded", param=field if prompt.length >= context else "max_tokens"
    )


def collate(prompts: list[Prompt], pad_id: int) -> dict[str, torch.Tensor]:
    """One batch: per-token tensors left-padded to the longest prompt [rows, longest], image tensors concatenated."""
    longest = max(prompt.length for prompt in prompts)
    batch: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.features):
        parts = []
        for prompt in prompts:
            if name not in prompt.features:
                continue  # no images in this row
            tensor = prompt.features[name]
            if tensor.shape == (1, prompt.length):
                fill = pad_id if name == "input_ids" else 0
                tensor = torch.nn.functional.pad(tensor, (longest - prompt.length, 0), value=fill)
            parts.append(tensor)
        batch[name] = torch.cat(parts)
    return batch
