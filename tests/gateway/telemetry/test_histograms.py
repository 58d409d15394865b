"""Our histograms count as prometheus_client's own do, whose private parts they use."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from gateway.telemetry.metrics import SECONDS, QuickHistogram

values = st.floats(allow_nan=False) | st.sampled_from([*SECONDS, 0.0, math.inf])


@given(st.lists(values, max_size=20))
def test_the_same_values_give_the_same_exposition(observed: list[float]) -> None:
    written = []
    for kind in (Histogram, QuickHistogram):
        registry = CollectorRegistry()
        histogram = kind("seconds", "Help.", ["model"], buckets=SECONDS, registry=registry).labels("a")
        for value in observed:
            histogram.observe(value)
        written.append(generate_latest(registry))
    assert written[0] == written[1]
