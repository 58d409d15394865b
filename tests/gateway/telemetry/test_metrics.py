"""What /metrics says after known requests, read by Prometheus's own parser."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.exposition_format import MetricFamily, merge_exposition, write_family
from tests.support.gateway.processes import Process, fake_engine, lensmith_serve
from tests.support.gateway.requests import CHAT, ask, picture


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
        gateway.engine_port = engine.port  # type: ignore[attr-defined]
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
        ("lensmith_upstream_requests_total", {"outcome": "ok"}, 5),
        ("lensmith_upstream_requests_total", {"outcome": "engine_error"}, 1),
        ("lensmith_upstream_seconds_count", {}, 6),
        ("lensmith_upstream_first_byte_seconds_count", {}, 5),
        ("lensmith_upstream_running", {}, 0),
        ("lensmith_engine_metrics_up", {}, 1),
        ("lensmith_engine_lmdeploy_prompt_tokens_total", {"exported_engine": "0", "model_name": "fake"}, 35),
        ("lensmith_engine_lmdeploy_e2e_request_latency_seconds_bucket", {"le": "+Inf"}, 3),
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
    assert all(family.name.startswith(("lensmith_", "process_")) for family in families)
    models = {sample.labels.get("model") for family in families for sample in family.samples}
    assert models <= {None, "fake", "unknown"}


def test_an_engines_figures_are_marked_as_its_own_and_those_that_mislead_are_left_out(measured: Process) -> None:
    text = httpx.get(measured.url + "/metrics").text
    assert "_created" not in text
    assert "num_requests_running" not in text
    assert "broken" not in text
    assert text.count("# TYPE lensmith_engine_up gauge") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    foreign = families["lensmith_engine_lmdeploy_e2e_request_latency_seconds"]
    assert foreign.type == "histogram"
    name = f"127.0.0.1:{measured.engine_port}"  # type: ignore[attr-defined]
    assert {sample.labels["engine"] for sample in foreign.samples} == {name}


def test_an_engine_whose_metrics_do_not_come_is_left_out() -> None:
    with fake_engine(FAKE_METRICS_SECONDS="60") as engine, lensmith_serve("--engine", engine.url) as gateway:
        gateway.wait_until("/ready", 200)
        text = httpx.get(gateway.url + "/metrics", timeout=30).text
        assert f'lensmith_engine_metrics_up{{engine="127.0.0.1:{engine.port}"}} 0.0' in text
        assert "lmdeploy" not in text
        assert "lensmith_engine_up" in text


PIECES = [
    "a",
    "lensmith_engine_up",
    "lmdeploy:x",
    '{le="1"',
    'engine="b"}',
    "{}",
    " ",
    "1",
    "NaN",
    "# TYPE ",
    "# HELP ",
]


@given(lines=st.lists(st.lists(st.sampled_from([*PIECES, "\\", '"', "é", "\r", "_bucket", "histogram"]), max_size=9)))
def test_whatever_an_engine_says_what_we_write_can_be_read(lines: list[list[str]]) -> None:
    families: dict[str, MetricFamily] = {}
    for engine in ("one", 'two"\\'):
        merge_exposition(families, "\n".join("".join(line) for line in lines), engine)
    written = "".join(line for name, family in families.items() for line in write_family(name, family))
    for family in text_string_to_metric_families(written):
        assert family.name.startswith("lensmith_engine_")
        assert all(sample.labels["engine"] in ("one", 'two"\\') for sample in family.samples)


def test_one_json_line_a_request_without_its_content(measured: Process) -> None:
    lines = [json.loads(line) for line in measured.log().splitlines() if line.startswith("{")]
    # A stream's line comes once it is closed, when its client may have asked the next thing.
    assert sorted((line["status"], line["outcome"]) for line in lines) == [
        *[(200, "ok")] * 5,
        (400, "missing_required_parameter"),
        *[(404, "model_not_found")] * 2,
        (500, "engine_error"),
    ]
    (stream,) = (line for line in lines if line["images"] == 2)
    assert stream["images"] == 2
    assert stream["pixels"] == 10_000
    assert stream["prompt_tokens"] == 7
    assert stream["generation_tokens"] == 2
    assert stream["outcome"] == "ok"
    assert stream["path"] == CHAT
    assert stream["attempts"] == 1
    steps = [stream[f"{step}_seconds"] for step in ("receive", "queue", "engine")]
    assert 0 < sum(steps) <= stream["seconds"] + 0.001
    assert stream["receive_seconds"] < stream["first_token_seconds"] <= stream["seconds"]
    assert "count 2" not in measured.log()
    assert "base64" not in measured.log()
