"""The OpenAPI document: it names every route, and schemathesis finds no answer that it does not describe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from gateway.app import create_app
from gateway.http.middleware import Direct
from gateway.proxy.data_routes import DATA_ROUTES
from tests.support.gateway.applications import service_for
from tests.support.gateway.processes import Process
from tests.support.gateway.requests import ask, keys_command

# A short look, the same in every run; for a long one with new examples set SCHEMATHESIS_EXAMPLES.
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "0"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


PATHS: dict[str, Any] = create_app(service_for("http://127.0.0.1:9")).openapi()["paths"]


@pytest.fixture(scope="module")
def described(gateway: Process) -> Any:
    document = httpx.get(gateway.url + "/openapi.json").json()
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):  # else nearly every request would ask for a model that isn't there
            schema["properties"]["model"] = {"const": "fake"}
    loaded = schemathesis.openapi.from_dict(document)
    loaded.config.update(base_url=gateway.url)
    return loaded


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
@pytest.mark.parametrize(("path", "method"), [(path, method) for path in PATHS for method in PATHS[path]])
def test_every_answer_is_as_described(described: Any, path: str, method: str, mode: GenerationMode) -> None:
    operation = described[path][method]
    if mode is GenerationMode.NEGATIVE and not operation.body:
        return  # nothing can be wrong about it

    @settings(
        max_examples=EXAMPLES or 15,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


def test_every_route_is_described(post: httpx.Client) -> None:
    assert {row.path for row in DATA_ROUTES} <= set(PATHS)
    paths = post.get("/openapi.json").json()["paths"]
    assert paths == PATHS
    for path, operations in paths.items():
        for method in operations:
            answer = post.request(method, path.replace("{name}", "fake"))
            assert answer.status_code not in (404, 405), path


def test_the_application_is_fastapis_and_has_every_route(engine: Process) -> None:
    app = create_app(service_for(engine.url))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        document = client.get("/openapi.json").json()
        assert document == app.openapi()
        assert document["components"]["schemas"]["ChatRequest"]["properties"]["n"]["anyOf"][0]["maximum"] == 128
        for path, operations in document["paths"].items():
            for method in operations:
                answer = client.request(method, path.replace("{name}", "fake"))
                assert answer.status_code not in (404, 405), path
                assert answer.headers["x-request-id"]
        answer = client.post("/v1/chat/completions", json={"model": "fake", "messages": ask("count 3")})
        assert answer.json()["choices"][0]["message"]["content"] == "0 1 2 "


def test_fastapis_router_and_the_fast_path_reach_the_same_application(engine: Process) -> None:
    app = create_app(service_for(engine.url))
    app.user_middleware = [added for added in app.user_middleware if added.cls is not Direct]
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for row in DATA_ROUTES:
            answer = client.post(
                row.path, json={"model": "nobody's", "messages": ask("hi"), "prompt": "hi", "input": "hi"}
            )
            assert answer.status_code in (400, 404), answer.text
            assert "error" in answer.json()
        body = {"model": "fake", "messages": ask("count 3"), "stream": True}
        assert client.post("/v1/chat/completions", json=body).text.endswith("data: [DONE]\n\n")


def test_a_document_names_the_key_where_keys_are_asked_for(tmp_path: Path) -> None:
    keys_command("add", "a", "--file", str(tmp_path / "keys.json"))
    document = create_app(service_for("http://127.0.0.1:9", keys=tmp_path / "keys.json")).openapi()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert {"key": []} in document["paths"]["/v1/chat/completions"]["post"]["security"]
    assert "security" not in document["paths"]["/health"]["get"]
    assert "/metrics" not in create_app(service_for("http://127.0.0.1:9"), management_port=1).openapi()["paths"]
