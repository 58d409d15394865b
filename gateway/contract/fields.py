"""Request fields: what each may be, said once for the gateway, the embedded engine and the OpenAPI document.

They are pydantic's. Validation is strict (a number in a string is refused, as OpenAI's API does) and keeps strings as
they are: an image's `data:` URI is not copied.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError, ValidationError

Object = dict[str, Any]

MAX_N = 128
MAX_STOP = 16
MAX_TOOLS = 128
MAX_TOKENS = 2**31 - 1


class RequestModel(BaseModel):
    """A request body, or an object inside one. Fields that it does not name are allowed: engines have their own."""

    model_config = ConfigDict(strict=True, extra="allow")


def wrong(sentence: str, code: str = "invalid_value", param: str | None = None) -> PydanticCustomError:
    """What validators raise. `sentence` follows the field's name; `param` names another field than the validator's."""
    return PydanticCustomError(code, sentence, {"param": param} if param else None)


def says(sentence: str, code: str = "invalid_value") -> WrapValidator:
    """One sentence for whatever is wrong with a value, in place of what each of its allowed forms lacks."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise wrong(sentence, code) from None

    return WrapValidator(check)


Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopLogProbs = Annotated[int, Field(ge=0, le=20)]
Stop = Annotated[
    Text | Annotated[list[Text], Field(max_length=MAX_STOP, fail_fast=True)],
    says(f"must be a non-empty string or a list of at most {MAX_STOP} of them", "invalid_type"),
]


class StreamOptions(RequestModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="vLLM's: the usage in every chunk.")


class FunctionName(RequestModel):
    name: str


class Function(RequestModel):
    type: Literal["function"]
    function: FunctionName


Tool = Annotated[Function, says('must be {"type": "function", "function": {"name": …}}')]
ToolChoice = Annotated[
    Literal["none", "auto", "required"] | Function, says("must be none, auto, required or a function of 'tools'")
]


class Sampling(RequestModel):
    """How the next token is chosen. null counts as absent, as OpenAI's clients mean it."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = Field(None, description="0 and -1 mean all tokens.")
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
