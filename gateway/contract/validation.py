"""From pydantic's errors to ours: the first field that is wrong, named as clients write it, and never what it held."""

from __future__ import annotations

import codecs
import math
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from gateway.contract.fields import Object
from gateway.errors import ApiError, bad_request

T = TypeVar("T", bound=BaseModel)
LARGE = 16_384  # bytes of a body from which on it matters which parser reads a string
FEW = 256  # commas, so that few numbers have to be looked at
NAME_LIMIT = 64  # longest piece of a client's own names that is repeated in an error
NOT_SERVED = "is none that is served"
SENTENCES = {
    "missing": "is required",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "int_type": "must be an integer",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must map token ids to numbers",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "list_type": "must be a list",
    "literal_error": "must be one of {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must not be empty",
    "too_long": "may have at most {max_length} members",
    "union_tag_not_found": NOT_SERVED,
    "union_tag_invalid": NOT_SERVED,
    "model_attributes_type": NOT_SERVED,
}
# An empty list of messages is as good as none.
CODES = dict.fromkeys(("missing", "too_short", "missing_required_parameter"), "missing_required_parameter")


def parse_json(raw: bytes) -> Object:
    """The request body as an object. A byte order mark, as Windows writes it, is passed over. Raises ApiError 400."""
    raw = raw.removeprefix(codecs.BOM_UTF8)
    body = _quickly(raw) if len(raw) > LARGE else None
    if body is None:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            # Its message gives the position, never the text.
            raise ApiError(400, f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    return body


def _quickly(raw: bytes) -> Any:
    """What orjson makes of a body that is nearly all one long string, such as an image; None if it is another.

    pydantic's parser takes an eighth of orjson's time for such a string, but a bit more for everything else, and it
    differs in numbers beyond 64 bits and in depth.
    """
    at = -1
    for _ in range(FEW):  # `find` skips base64, which has no commas, thirty times as fast as `count`
        at = raw.find(b",", at + 1)
        if at < 0:
            break
    else:
        return None
    try:
        body = from_json(raw, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return None
    return body if _has_plain_numbers(body) else None


def _has_plain_numbers(body: Any) -> bool:
    """Whether orjson gives the same value for every number."""
    values = [body]
    for value in values:  # which grows
        kind = type(value)
        if kind is str:
            continue
        if kind is dict:
            values += value.values()
        elif kind is list:
            values += value
        elif (kind is int and not -(2**63) <= value < 2**64) or (kind is float and not math.isfinite(value)):
            return False
    return True


def validate(model: type[T], body: Object) -> T:
    """Raises ApiError 400 whose `param` is the first field that is wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise explain_validation(error) from None


def explain_validation(error: ValidationError) -> ApiError:
    errors = error.errors(include_url=False, include_input=False)
    first, *others = errors
    or_string = first["loc"][-1:] == ("str",) and bool(others)
    if or_string:  # of a union of a string and something else the other one says more
        first = others[0]
    kind, context = first["type"], first.get("ctx") or {}
    param = context.get("param") or _param(first["loc"])
    if SENTENCES.get(kind) == NOT_SERVED:
        param += ".type"
    context = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    sentence = SENTENCES[kind].format_map(context) if kind in SENTENCES else first["msg"]
    if kind == "union_tag_not_found" and context.get("discriminator") == "'type'":
        sentence = SENTENCES["missing"]
    kinds = context.get("expected_tags", "<")
    if "<" not in kinds:  # names that clients write, not those of our own branches
        sentence = f"must be one of {kinds}"
    if " or " not in sentence and "," not in sentence:
        sentence = sentence.replace("must be one of", "must be")
    if or_string and kind == "list_type":
        sentence = "must be a string or a list"
    code = CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    return bad_request(f"'{param}' {sentence}.", param, code)


def _param(location: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].text`, of pydantic's location without the names of unions' branches."""
    param = ""
    steps = location[:-2] if location[-1:] == ("[key]",) else location  # a wrong key is the whole mapping's mistake
    for at, step in enumerate(steps):
        if isinstance(step, int):
            param += f"[{step}]"
        elif not _names_a_branch(step) and not (at > 1 and _names_a_branch(steps[at - 2])):
            param += ("." if param else "") + step[:NAME_LIMIT]
    return param


def _names_a_branch(step: int | str) -> bool:
    """As in `content`, `function-after[…]`, 0, `text`: a list is the branch, and its index is followed by a kind."""
    return isinstance(step, str) and (step.startswith("<") or step == "str" or step.endswith("]"))
