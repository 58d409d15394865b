"""The bodies of OpenAI's chat and text completions and of /tokenize.

https://platform.openai.com/docs/api-reference/chat/create; `top_k`, `min_p` and `repetition_penalty` are named as in
vLLM and LMDeploy.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from gateway.contract.fields import (
    MAX_N,
    MAX_TOOLS,
    Function,
    Object,
    RequestModel,
    Sampling,
    Stop,
    StreamOptions,
    Text,
    Tokens,
    Tool,
    ToolChoice,
    TopLogProbs,
    says,
    wrong,
)

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
ROLES: tuple[str, ...] = get_args(Role)


class ImageUrl(RequestModel):
    url: str = Field(description="A data: URI in base64, or a URL of a host that is allowed.")
    detail: Literal["auto", "low", "high", "original", ""] | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_url(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("url"), str):
            raise wrong("must be an object with a string 'url'", "invalid_type")
        return value


class TextContent(RequestModel):
    type: Literal["text"]
    text: str


class ImageContent(RequestModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalContent(RequestModel):
    type: Literal["refusal"]
    refusal: str


ContentPart = Annotated[TextContent | ImageContent | RefusalContent, Field(discriminator="type")]


def _only_an_assistants(content: None, info: ValidationInfo) -> None:
    if info.data.get("role") != "assistant":
        raise wrong("must be a string or a list of parts", "invalid_type")


def _not_an_empty_question(content: list[Any], info: ValidationInfo) -> list[Any]:
    if not content and info.data.get("role") == "user":
        raise wrong("must be a string or a list of parts", "invalid_type")
    return content


class Message(RequestModel):
    """`content` may be absent where an assistant's message is its tool calls, and an empty list except in a user's."""

    role: Role
    content: (
        str
        | Annotated[list[ContentPart], Field(fail_fast=True), AfterValidator(_not_an_empty_question)]
        | Annotated[None, AfterValidator(_only_an_assistants)]
    ) = Field(None, validate_default=True)


class PlainFormat(RequestModel):
    type: Literal["text", "json_object"]


class JsonSchema(RequestModel):
    schema_: Object = Field(alias="schema")


class SchemaFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: JsonSchema

    @model_validator(mode="before")
    @classmethod
    def _has_schema(cls, value: Any) -> Any:
        described = value.get("json_schema")
        if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
            param = "response_format.json_schema.schema"
            raise wrong("is required and must be a JSON schema", "missing_required_parameter", param)
        return value


def _format(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<schema>" if kind == "json_schema" else "<plain>" if kind in ("text", "json_object") else None


ResponseFormat = Annotated[
    Annotated[PlainFormat, Tag("<plain>")] | Annotated[SchemaFormat, Tag("<schema>")], Discriminator(_format)
]


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class Generation(Sampling):
    """What chat and text completions have in common."""

    model: Text
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | None = None
    logit_bias: dict[Annotated[str, Field(pattern="^[0-9]+$")], Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _streams(self) -> Generation:
        if self.stream_options is not None and self.stream is not True:
            raise wrong("is only allowed when 'stream' is true", param="stream_options")
        return self

    @property
    def streams(self) -> bool:
        return self.stream is True

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True


class ChatRequest(Generation):
    logprobs: bool | None = None
    top_logprobs: TopLogProbs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    metadata: Object | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs and self.logprobs is not True:
            raise wrong("needs 'logprobs' to be true", param="top_logprobs")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise wrong("needs 'tools'", param="tool_choice")
        if isinstance(self.tool_choice, Function):
            names = [tool.function.name for tool in self.tools or ()]
            if self.tool_choice.function.name not in names:
                raise wrong("must name one of 'tools'", param="tool_choice")
        return self


MAX_PROMPTS = 128
Prompts = Annotated[
    Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)],
    says(f"must be a non-empty string or a list of at most {MAX_PROMPTS} of them; token ids are not taken"),
]
Prompt = Annotated[
    Text | Annotated[list[Text], Field(min_length=1, max_length=1)],
    says("must be one non-empty string: send a request for each text, and text instead of token ids"),
]


class CompletionRequest(Generation):
    logprobs: TopLogProbs | None = None
    prompt: Prompts

    @property
    def texts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class TokenizeRequest(RequestModel):
    """`messages` as in a chat completion, perhaps with `tools`, or a `prompt` as in a text completion."""

    model: Text
    prompt: Prompt | None = None
    tools: Tools | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise wrong("or 'messages' is required, not both", "missing_required_parameter", "prompt")
        return self

    @property
    def text(self) -> str | None:
        return self.prompt if self.prompt is None or isinstance(self.prompt, str) else self.prompt[0]
