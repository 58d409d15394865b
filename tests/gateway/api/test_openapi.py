"""The OpenAPI document: it names every route, and schemathesis finds no answer that it does not describe."""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest
import schemathesis
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

from gateway.api.openapi import PATHS
from gateway.app import ROUTES
from tests.support.gateway.processes import Process

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
    assert set(ROUTES) <= set(PATHS)
    paths = post.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method in operations:
            answer = post.request(method, path.replace("{name}", "fake"))
            assert answer.status_code not in (404, 405), path
