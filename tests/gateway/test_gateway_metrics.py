"""What /metrics says after known requests, read by Prometheus's own parser."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from processes import Process, fake_engine, lensmith_serve
from prometheus_client.parser import text_string_to_metric_families
from test_gateway_bad_input import CHAT
from test_gateway_chat import ask, picture


@pytest.fixture(scope="module")
def measured() -> Iterator[Process]:
    """A gateway that has answered 3 plain requests, 2 streams, one of them with 2 images, and refused 3."""
    with fake_engine() as engine, lensmith_serve("--engine", engine.url) as gateway:
        gateway.wait_until("/ready", 200)
        with httpx.Client(base_url=gateway.url) as client:
            for _ in range(3):
                client.post(CHAT, json={"model": "fake", "messages": ask("count 5")})
            client.post(CHAT, json={"model": "fake", "messages": ask("count 4 0.02"), "stream": True})
            image = {"type": "image_url", "image_url": {"url": picture("PNG", (100, 50))}}
            content = [image, image, {"type": "text", "text": "count 2"}]
            client.post(
                CHAT, json={"model": "fake", "messages": [{"role": "user", "content": content}], "stream": True}
            )
            for model in ("made-up-1", "made-up-2"):
                client.post(CHAT, json={"model": model, "messages": ask("hi")})
            client.post(CHAT, json={"model": "fake", "messages": []})
            client.post(CHAT, json={"model": "fake", "messages": ask("fault status 500")})
        yield gateway


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("lensmith_requests_total", {"model": "fake", "status": "200"}, 5),
        ("lensmith_requests_total", {"model": "fake", "status": "500"}, 1),
        ("lensmith_requests_total", {"model": "unknown", "status": "404"}, 2),
        ("lensmith_requests_total", {"model": "fake", "status": "400"}, 1),
        ("lensmith_rejections_total", {"reason": "model_not_found"}, 2),
        ("lensmith_rejections_total", {"reason": "missing_required_parameter"}, 1),
        ("lensmith_rejections_total", {"reason": "engine_error"}, 1),
        ("lensmith_request_seconds_count", {"model": "fake"}, 7),
        ("lensmith_time_to_first_token_seconds_count", {"model": "fake"}, 2),
        ("lensmith_prompt_tokens_total", {"model": "fake"}, 35),
        ("lensmith_generation_tokens_total", {"model": "fake"}, 3 * 5 + 4 + 2),
        ("lensmith_batch_size_count", {}, 6),
        ("lensmith_batch_size_sum", {}, 6),
        ("lensmith_requests_running", {}, 0),
        ("lensmith_images_per_request_count", {}, 6),
        ("lensmith_images_per_request_sum", {}, 2),
        ("lensmith_image_pixels_count", {}, 2),
        ("lensmith_image_pixels_sum", {}, 10_000),
        ("lensmith_engine_up", {}, 1),
        ("lensmith_engine_restarts_total", {}, 0),
    ],
)
def test_a_metric_after_known_requests(measured: Process, name: str, labels: dict[str, str], value: float) -> None:
    assert measured.metric(name, **labels) == value


def test_gaps_and_loop_lag_are_observed(measured: Process) -> None:
    assert measured.metric("lensmith_inter_token_latency_seconds_count", model="fake") >= 4
    assert measured.metric("lensmith_event_loop_lag_seconds_count") > 0


def test_buckets_reach_160_seconds_and_labels_come_from_configuration(measured: Process) -> None:
    text = httpx.get(measured.url + "/metrics").text
    assert 'lensmith_request_seconds_bucket{le="160.0",model="fake"}' in text
    families = list(text_string_to_metric_families(text))
    assert all(family.name.startswith("lensmith_") for family in families)
    models = {sample.labels.get("model") for family in families for sample in family.samples}
    assert models <= {None, "fake", "unknown"}


def test_one_json_line_a_request_without_its_content(measured: Process) -> None:
    lines = [json.loads(line) for line in measured.log().splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines] == [200] * 5 + [404, 404, 400, 500]
    assert lines[4]["images"] == 2
    assert lines[4]["pixels"] == 10_000
    assert lines[4]["generation_tokens"] == 2
    assert "count 2" not in measured.log()
    assert "base64" not in measured.log()
