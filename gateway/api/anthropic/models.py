"""Request bodies and answers of Anthropic's Messages API: https://docs.anthropic.com/en/api/messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gateway.contract.answers import ResponseModel
from gateway.contract.fields import MAX_TOKENS, Object, RequestModel, Text, Tokens, TopP, wrong


class TextBlock(RequestModel):
    type: Literal["text"]
    text: str


class ImageSource(RequestModel):
    type: Literal["base64", "url"]
    media_type: str | None = Field(None, description="Of `data`, such as image/png.")
    data: str | None = Field(None, description="The file in base64.")
    url: str | None = Field(None, description="Of a host that is allowed.")

    @model_validator(mode="after")
    def _has_an_image(self) -> ImageSource:
        if (self.data if self.type == "base64" else self.url) is None:
            raise wrong("must have 'data' if its type is base64, and 'url' if it is url")
        return self


class ImageBlock(RequestModel):
    type: Literal["image"]
    source: ImageSource


class ToolUseBlock(RequestModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Object


class ToolResultBlock(RequestModel):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] | None = None


class ThinkingBlock(RequestModel):
    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(RequestModel):
    type: Literal["redacted_thinking"]


Block = Annotated[
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock,
    Field(discriminator="type"),
]


class AnthropicMessage(RequestModel):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class AnthropicTool(RequestModel):
    name: Text
    type: Literal["custom"] | None = None
    description: str | None = None
    input_schema: Object
    strict: bool | None = None


class AnthropicToolChoice(RequestModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountTokensRequest(RequestModel):
    model: Text
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, fail_fast=True)]
    system: str | list[TextBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None


class OutputFormat(RequestModel):
    type: Literal["json_schema"]
    schema_: Object = Field(alias="schema")


class OutputConfig(RequestModel):
    format: OutputFormat | None = None
    effort: Literal["high"] | None = Field(None, description="How much to think is not settable; high is the default.")


class MessagesRequest(CountTokensRequest):
    max_tokens: Tokens
    stream: bool | None = None
    stop_sequences: list[Text] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    metadata: Object | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="An older place of output_config.format.")
    thinking: Object | None = Field(None, description="How much to think is not settable.")


class AnthropicErrorObject(ResponseModel):
    type: str
    message: str


class AnthropicError(ResponseModel):
    type: Literal["error"]
    error: AnthropicErrorObject


class AnthropicUsage(ResponseModel):
    input_tokens: int
    output_tokens: int


class MessageAnswer(ResponseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Any]
    stop_reason: str | None
    stop_sequence: str | None
    usage: AnthropicUsage


class CountedTokens(ResponseModel):
    input_tokens: int
