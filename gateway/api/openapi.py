"""The OpenAPI document of every route. Written here and not taken from handlers: most read their bodies themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.chat import ROLES
from gateway.api.completions import TEXT_FIELDS
from gateway.api.fields import FIELDS, Field, Object
from gateway.api.ollama.requests import OPTIONS

STRING: Object = {"type": "string"}
INTEGER: Object = {"type": "integer"}
BOOLEAN: Object = {"type": "boolean"}
OBJECT: Object = {"type": "object"}
NULL: Object = {"type": "null"}


def ref(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Object, **more: Any) -> Object:
    return {"type": "array", "items": items, **more}


def either(*schemas: Object) -> Object:
    return {"anyOf": list(schemas)}


def obj(properties: Mapping[str, Object], *required: str) -> Object:
    return {"type": "object", "required": list(required), "properties": dict(properties)}


def request(properties: Mapping[str, Object], *required: str) -> Object:
    """A request body: a field set to null counts as absent."""
    return obj(
        {
            name: schema if name in required else either(schema, NULL)
            for name, schema in {"model": {"type": "string", "minLength": 1}, **properties}.items()
        },
        "model",
        *required,
    )


def described(fields: Mapping[str, Field]) -> dict[str, Object]:
    return {name: field.schema for name, field in fields.items()}


IMAGE_URL = obj(
    {
        "url": {"type": "string", "description": "A data: URI in base64, or a URL of a host that is allowed."},
        "detail": {"enum": ["auto", "low", "high", None]},
    },
    "url",
)
PARTS = (
    obj({"type": {"const": "text"}, "text": STRING}, "type", "text"),
    obj({"type": {"const": "image_url"}, "image_url": IMAGE_URL}, "type", "image_url"),
    obj({"type": {"const": "refusal"}, "refusal": STRING}, "type", "refusal"),
)
OLLAMA_COMMON: dict[str, Object] = {
    "stream": {"type": "boolean", "default": True},
    "format": either({"enum": ["json", ""]}, OBJECT),
    "options": {"type": "object", "description": f"Among others {', '.join(OPTIONS)}."},
    "keep_alive": {},
}
IMAGES = array({"type": "string", "contentEncoding": "base64"})
USAGE = obj(
    dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), INTEGER),
    "prompt_tokens",
    "completion_tokens",
)
OLLAMA_DETAILS: dict[str, Object] = {"name": STRING, "model": STRING, "size": INTEGER, "details": OBJECT}


def completion(kind: str, text: Mapping[str, Object]) -> Object:
    """A whole answer of `kind`; `text`: the field of a choice that holds what was written."""
    fields = {
        "id": STRING,
        "object": {"const": kind},
        "created": INTEGER,
        "model": STRING,
        "choices": array(obj({"index": INTEGER, **text, "finish_reason": STRING}, "index", *text)),
    }
    return obj({**fields, "usage": USAGE}, *fields)


SCHEMAS: dict[str, Object] = {
    "Error": obj(
        {
            "error": obj(
                {"message": STRING, "type": STRING, "param": either(STRING, NULL), "code": STRING},
                *("message", "type", "param", "code"),
            )
        },
        "error",
    ),
    "OllamaError": obj({"error": STRING}, "error"),
    "Message": obj(
        {"role": {"enum": list(ROLES)}, "content": either(STRING, array(ref("Part"), minItems=1), NULL)}, "role"
    ),
    "Part": either(*PARTS),
    "ChatCompletionRequest": request(
        {**described(FIELDS), "messages": array(ref("Message"), minItems=1)},
        "messages",
    ),
    "ChatCompletion": completion("chat.completion", {"message": OBJECT}),
    "CompletionRequest": request(
        {
            **described(TEXT_FIELDS),
            "prompt": either(
                {"type": "string", "minLength": 1}, array({"type": "string", "minLength": 1}, minItems=1, maxItems=1)
            ),
        },
        "prompt",
    ),
    "Completion": completion("text_completion", {"text": STRING}),
    "ResponseRequest": request(
        {
            "input": either(STRING, array(OBJECT, minItems=1)),
            "instructions": STRING,
            "max_output_tokens": FIELDS["max_tokens"].schema,
            "text": OBJECT,
            "tools": array(obj({"type": {"const": "function"}, "name": STRING}, "type", "name")),
            "include": array(STRING),
            **{name: FIELDS[name].schema for name in ("temperature", "top_p", "stream", "user", "metadata")},
        },
        "input",
    ),
    "Response": obj(
        {
            "id": STRING,
            "object": {"const": "response"},
            "created_at": INTEGER,
            "status": {"enum": ["completed", "incomplete"]},
            "model": STRING,
            "output": array(OBJECT),
            "store": {"const": False},
            "usage": either(OBJECT, NULL),
        },
        *("id", "object", "created_at", "status", "model", "output", "usage"),
    ),
    "TokenizeRequest": request(
        {"prompt": STRING, "messages": array(ref("Message"), minItems=1)},
    ),
    "Tokens": obj(
        {
            "count": INTEGER,
            "max_model_len": either(INTEGER, NULL),
            "tokens": either(array(INTEGER), NULL),
        },
        *("count", "max_model_len", "tokens"),
    ),
    "Model": obj(
        {"id": STRING, "object": {"const": "model"}, "created": INTEGER, "owned_by": STRING},
        *("id", "object", "created", "owned_by"),
    ),
    "Models": obj({"object": {"const": "list"}, "data": array(ref("Model"))}, "object", "data"),
    "OllamaChatRequest": request(
        {
            **OLLAMA_COMMON,
            "messages": array(
                obj(
                    {
                        "role": {"enum": ["system", "user", "assistant", "tool"]},
                        "content": either(STRING, NULL),
                        "images": either(IMAGES, NULL),
                    },
                    "role",
                )
            ),
        }
    ),
    "OllamaGenerateRequest": request({**OLLAMA_COMMON, "prompt": STRING, "system": STRING, "images": IMAGES}),
    "OllamaAnswer": obj({"model": STRING, "created_at": STRING, "done": BOOLEAN}, "model", "created_at", "done"),
    "OllamaModels": obj({"models": array(obj(OLLAMA_DETAILS, "name", "model"))}, "models"),
    "OllamaShowRequest": obj(
        {"model": either(STRING, NULL), "name": {"description": "What older clients send instead of `model`."}}
    ),
    "OllamaShow": obj({"details": OBJECT, "model_info": OBJECT, "capabilities": array(STRING)}, "capabilities"),
    "OllamaVersion": obj({"version": STRING}, "version"),
    "Health": obj({"status": STRING}, "status"),
    "Ready": obj({"status": STRING, "reason": STRING, "models": OBJECT}, "status"),
}
JSON = "application/json"
PROBLEMS = {
    401: "No valid key, where keys are asked for",
    403: "The key may not use this model",
    404: "No such model",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "Not JSON, or compressed",
    429: "A limit of the key is reached",
    500: "A defect",
    502: "The engine failed",
    503: "No place would become free in time, or no engine is ready",
    504: "The engine did not answer in time",
}


def answer(about: str, content: Mapping[str, Object]) -> Object:
    return {"description": about, "content": {kind: {"schema": schema} for kind, schema in content.items()}}


def operation(
    summary: str,
    ok: Mapping[str, Object],
    *,
    body: str = "",
    problems: tuple[int, ...] = (401, 500),
    error: str = "Error",
    **more: Any,
) -> Object:
    described: Object = {"summary": summary, **more}
    responses = {"200": answer("The answer", ok)}
    if body:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": ref(body)}}}
        responses["400"] = answer("The request is wrong; `param` names the field", {JSON: ref(error)})
    responses |= {str(status): answer(PROBLEMS[status], {JSON: ref(error)}) for status in problems}
    return {**described, "responses": responses}


def generation(summary: str, body: str, whole: str, stream: str, *, error: str = "Error") -> Object:
    """A route of the request path. `stream`: the content type of its streams."""
    ok = {JSON: ref(whole), **({stream: {}} if stream else {})}
    return {"post": operation(summary, ok, body=body, problems=tuple(PROBLEMS), error=error)}


EVENTS, LINES = "text/event-stream", "application/x-ndjson"
NAME = {"name": "name", "in": "path", "required": True, "schema": STRING}
PATHS: dict[str, Object] = {
    "/v1/chat/completions": generation("Chat, with images", "ChatCompletionRequest", "ChatCompletion", EVENTS),
    "/v1/completions": generation("Go on with a text", "CompletionRequest", "Completion", EVENTS),
    "/v1/responses": generation("OpenAI's Responses, without a store", "ResponseRequest", "Response", EVENTS),
    "/tokenize": generation("Count a prompt's tokens", "TokenizeRequest", "Tokens", ""),
    "/v1/models": {"get": operation("The models there are", {JSON: ref("Models")})},
    "/v1/models/{name}": {
        "get": operation("One model", {JSON: ref("Model")}, problems=(401, 404, 500), parameters=[NAME])
    },
    "/api/chat": generation("Ollama's chat", "OllamaChatRequest", "OllamaAnswer", LINES, error="OllamaError"),
    "/api/generate": generation("Ollama's prompt", "OllamaGenerateRequest", "OllamaAnswer", LINES, error="OllamaError"),
    "/api/tags": {"get": operation("Ollama's list of models", {JSON: ref("OllamaModels")}, error="OllamaError")},
    "/api/ps": {"get": operation("Ollama's list of loaded models", {JSON: ref("OllamaModels")}, error="OllamaError")},
    "/api/show": {
        "post": operation(
            "What Ollama tells of a model",
            {JSON: ref("OllamaShow")},
            body="OllamaShowRequest",
            problems=(401, 404, 408, 413, 415, 500),
            error="OllamaError",
        )
    },
    "/api/version": {"get": operation("The version of Ollama's API", {JSON: ref("OllamaVersion")})},
    "/health": {"get": operation("Whether the process lives", {JSON: ref("Health")}, problems=(), security=[])},
    "/ready": {
        "get": {
            **operation("Whether a model can be used", {JSON: ref("Ready")}, problems=(), security=[]),
            "responses": {
                "200": answer("At least one can", {JSON: ref("Ready")}),
                "503": answer("None can", {JSON: ref("Ready")}),
            },
        }
    },
    "/metrics": {"get": operation("Prometheus metrics", {"text/plain": STRING})},
}


def document(version: str, keys: bool, metrics: bool = True) -> Object:
    """`keys`: whether a key is asked for; `metrics`: whether they are at this port."""
    schemes: Object = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Lensmith", "version": version},
        "paths": {path: methods for path, methods in PATHS.items() if metrics or path != "/metrics"},
        "components": {"schemas": SCHEMAS, **schemes},
        **({"security": [{"key": []}]} if keys else {}),
    }
