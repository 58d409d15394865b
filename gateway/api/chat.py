"""Chat completion requests: checked by their model, then written anew as the engine gets them.

One request is one prompt, whatever the engine: messages and their parts have known keys only, and neighbouring texts
are one text, because engines join them differently. Of other fields of the body, those that the engine honours are
passed on (gateway/engines/extra_fields.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.api.unsupported import HARMLESS, NOWHERE
from gateway.contract.fields import Object
from gateway.contract.requests import ChatRequest, Generation
from gateway.contract.validation import validate
from gateway.engines.extra_fields import apply_extra_fields
from gateway.engines.spec import EngineSpec
from gateway.errors import ApiError, bad_request
from gateway.media.checks import ImagePart
from gateway.streaming.completion import read_completion
from gateway.streaming.logprobs import RawLogProbs
from gateway.streaming.normalise import Normaliser
from gateway.streaming.stops import Stops

CHAT_PATH = "v1/chat/completions"
# What an engine gets of a message. Templates read `reasoning_content`; other keys are clients' own.
MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
SESSION_BITS = 48  # of a session's number: two running at once are never the same
IMAGE_ROLES = ("user", "tool")
# A whole answer -> what the client gets, and the usage; as `read_completion`. Raises ApiError 502.
Reader = Callable[[bytes, Stops | None, RawLogProbs | None, Normaliser | None], tuple[bytes, Object]]


@dataclass
class EngineRequest:
    """A checked request. `body` is what the engine gets; `images` stand in the prompt's order."""

    body: Object
    model: str
    stream: bool = False
    include_usage: bool = False  # the client asked for it
    usage_everywhere: bool = False  # and for it in every chunk, which is vLLM's addition
    n: int = 1
    images: list[ImagePart] = field(default_factory=list)
    stops: Stops | None = None  # what the gateway cuts, because the engine doesn't
    session: int | None = None  # the answer's number at the engine, by which it can be ended at a stop string
    collects: bool = False  # the client gets a whole answer, and the engine is asked for a stream to end it early
    top_log_probs: int | None = None  # alternatives to each token; None without log-probabilities
    path: str = CHAT_PATH  # at the engine
    read: Reader = read_completion  # what makes the client's answer of the engine's
    parts: list[EngineRequest] = field(default_factory=list)  # one for each prompt, if there are several

    @property
    def all_cut(self) -> bool:
        """Whether every answer has met a stop string."""
        return self.stops is not None and self.stops.all_hit


def check_chat(body: Object, spec: EngineSpec) -> EngineRequest:
    """Check the fields of OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat/create).

    Raises ApiError 400 whose `param` is the field. A field set to null counts as absent, as OpenAI's clients mean it.
    """
    request = validate(ChatRequest, body)
    if body.get("tool_choice") == "none":  # the tools ask for nothing then
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            body.pop(name, None)
    if not spec.forces_named_tool and isinstance(body.get("tool_choice"), dict):
        named = body["tool_choice"]["function"]["name"]
        body["tools"] = [tool for tool in body["tools"] if tool["function"]["name"] == named]
        body.update(tool_choice="required", parallel_tool_calls=False)
    if not spec.pins_arguments and body.get("tool_choice") not in (None, "auto"):
        body["tools"] = [_strict(tool) for tool in body["tools"]]
    for table in (NOWHERE, spec.refused):
        refuse(body, table)
    apply_extra_fields(body, ChatRequest.model_fields, spec.extra_fields, spec.name, spec.max_pixels)
    body["messages"], images = engine_messages(body["messages"], spec)
    if is_answer_begun(body["messages"]):
        body.update(spec.continue_fields)
    top = (request.top_logprobs or 0) if request.logprobs else None
    return engine_request(body, request, spec, images=images, top_log_probs=top)


def engine_request(
    body: Object,
    request: Generation,
    spec: EngineSpec,
    *,
    path: str = CHAT_PATH,
    images: list[ImagePart] | None = None,
    top_log_probs: int | None = None,
) -> EngineRequest:
    """What chat and text completions have in common. Raises ApiError 400."""
    n = request.n or 1
    stops = cut_stops(body, n, spec)
    session = None
    if stops is not None and n == 1 and spec.abort_path:
        body["session_id"] = session = secrets.randbits(SESSION_BITS)
    if request.top_k == -1 and not spec.negative_top_k:
        body["top_k"] = 0
    if n > 1 and request.temperature == 0 and not spec.greedy_choices:
        body.update(temperature=1, top_k=1)
    return EngineRequest(
        body,
        request.model,
        stream=request.streams,
        include_usage=request.wants_usage,
        usage_everywhere=request.stream_options is not None and request.stream_options.continuous_usage_stats is True,
        n=n,
        images=images or [],
        stops=stops,
        session=session,
        collects=session is not None and not request.streams and not body.get("tools"),
        top_log_probs=top_log_probs,
        path=path,
    )


def refuse(body: Object, table: Mapping[str, str]) -> None:
    """Refuse the table's fields; those whose value asks for nothing are taken out, for engines that don't know them."""
    for name in table.keys() & body.keys():
        value = body.pop(name)
        if value is not None and value not in HARMLESS.get(name, ()):
            raise bad_request(f"'{name}' cannot be honoured: {table[name]}.", name, "unsupported_parameter")


def _strict(tool: Object) -> Object:
    """A function whose arguments the engine must keep to its schema, an object if it has none."""
    function = tool["function"]
    strict = {
        "strict": True if function.get("strict") is None else function["strict"],
        "parameters": function.get("parameters") or {"type": "object", "properties": {}},
    }
    return {**tool, "function": {**function, **strict}}


def cut_stops(body: Object, n: int, spec: EngineSpec) -> Stops | None:
    """The stop strings that the gateway must cut, because the engine drops them.

    The engine does not get them: LMDeploy also stops at longer tokens that contain one.
    """
    if not body.get("stop") or not spec.drops_stop:
        return None
    stop = body.pop("stop")
    return Stops([stop] if isinstance(stop, str) else stop, n)


def engine_messages(messages: list[Object], spec: EngineSpec) -> tuple[list[Object], list[ImagePart]]:
    """Checked messages as the engine gets them, and their images, which are the same objects as in the messages."""
    images: list[ImagePart] = []
    written: list[Object] = []
    for index, message in enumerate(messages):
        kept = {key: message[key] for key in MESSAGE_KEYS if message.get(key) is not None}
        kept.setdefault("content", None)  # of an assistant's message that is its tool calls
        if kept["role"] == "developer" and not spec.developer_role:
            kept["role"] = "system"
        if isinstance(kept.get("content"), list):
            before = len(images)
            kept["content"] = _engine_content(kept["content"], f"messages[{index}].content", images)
            if len(images) > before and kept["role"] not in IMAGE_ROLES:
                raise _misplaced(images[before], message["role"])
        if kept["role"] != "system" or spec.developer_role or not written:
            written.append(kept)
        elif written[0]["role"] == "system":
            _append_text(written[0], kept)
        else:
            written.insert(0, kept)
    # What came behind an answer and was moved to the beginning does not make the answer one to go on with.
    if is_answer_begun(written) and not (spec.continues_answer and is_answer_begun(messages)):
        location = f"messages[{len(messages) - 1}]"
        raise bad_request(
            f"'{location}' is an assistant's, and this engine cannot go on with an answer; end with a user's message.",
            location,
            "unsupported_parameter",
        )
    return written, images


def is_answer_begun(messages: list[Object]) -> bool:
    """Whether the last message is the beginning of the answer: an assistant's, without tool calls."""
    return messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")


def _misplaced(image: ImagePart, role: str) -> ApiError:
    message = f"'{image.location}' is an image in a message of the role {role}; put images into a user's message."
    return bad_request(message, image.location, "unsupported_parameter")


def _append_text(first: Object, second: Object) -> None:
    """Make one system message of two; both are texts or lists of one text."""
    texts = [kept if isinstance(kept, str) else kept[0]["text"] for kept in (first["content"], second["content"])]
    first["content"] = "\n\n".join(text for text in texts if text)


def _engine_content(parts: list[Object], location: str, images: list[ImagePart]) -> str | list[Object]:
    """Texts and images. A refusal is the text that an assistant answered with."""
    content: list[Object] = []
    for index, part in enumerate(parts):
        if part["type"] == "image_url":
            given = part["image_url"]
            image = {"url": given["url"]}
            if given.get("detail"):
                # OpenAI's newest word for an image that is not shrunk, which engines don't know.
                image["detail"] = "high" if given["detail"] == "original" else given["detail"]
            content.append({"type": "image_url", "image_url": image})
            images.append(ImagePart(f"{location}[{index}]", image))
        elif content and content[-1]["type"] == "text":
            content[-1]["text"] += part[part["type"]]
        else:
            content.append({"type": "text", "text": part[part["type"]]})
    return content or ""
