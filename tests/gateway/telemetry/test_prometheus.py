"""A real Prometheus with our configuration scrapes a running gateway; promtool accepts and tests the alert rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process, until
from tests.support.gateway.requests import CHAT, ask
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "lensmith.json").read_text())

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus"
)


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def test_dashboard_and_alerts_ask_for_metrics_that_there_are(gateway: Process) -> None:
    alerts = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    asked = [*dashboard_queries(), *(rule["expr"] for group in alerts["groups"] for rule in group["rules"])]
    names = {name for query in asked for name in re.findall(r"\b(?:lensmith|process)_\w+", query)}
    assert len(names) > 30
    there = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", httpx.get(gateway.url + "/metrics").text, re.M):
        there |= {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    assert names <= there


def test_the_dashboard_is_one_that_grafana_lays_out() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    used = {name for query in dashboard_queries() for name in re.findall(r"\$(\w+)", query)} - {"__rate_interval"}
    assert used <= {variable["name"] for variable in DASHBOARD["templating"]["list"]}


@needs_prometheus
@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"]
)
def test_promtool_accepts(command: str) -> None:
    done = subprocess.run(["promtool", *command.split()], cwd=DEPLOY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(gateway: Process, tmp_path: Path) -> Iterator[Process]:
    """Prometheus with the configuration in deploy/, pointed at the gateway and in more of a hurry."""
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    config = (DEPLOY / "prometheus.yml").read_text()
    config = config.replace("gateway:9000", f"127.0.0.1:{gateway.port}")
    config = re.sub(r"_interval: \d+s", "_interval: 200ms", config)
    (tmp_path / "prometheus.yml").write_text(config)
    port = free_port()
    argv = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with Process([*argv, f"--web.listen-address=127.0.0.1:{port}"], port) as process:
        process.wait_until("/-/ready", 200)
        yield process


def ask_prometheus(prometheus: Process, query: str) -> float | None:
    answer = httpx.get(prometheus.url + "/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    return float(answer["data"]["result"][0]["value"][1]) if answer["data"]["result"] else None


@needs_prometheus
def test_prometheus_scrapes_the_gateway_and_loads_the_rules(gateway: Process, prometheus: Process) -> None:
    httpx.post(gateway.url + CHAT, json={"model": "fake", "messages": ask("count 3"), "stream": True})
    expected = gateway.metric("lensmith_generation_tokens_total", model="fake")
    query = "lensmith_generation_tokens_total{model='fake'}"
    until("the tokens are there", lambda: ask_prometheus(prometheus, query) == expected)
    assert ask_prometheus(prometheus, "up{job='lensmith'}") == 1
    assert ask_prometheus(prometheus, "lensmith_engine_up") == 1
    of_the_engine = "lensmith_engine_lmdeploy_prompt_tokens_total{exported_engine='0'}"
    until("the engine's metrics are there", lambda: ask_prometheus(prometheus, of_the_engine) == 35)
    p95 = "histogram_quantile(0.95, sum by (le) (lensmith_time_to_first_token_seconds_bucket))"
    found = ask_prometheus(prometheus, p95)
    assert found is not None
    assert 0 < found < 160
    for query in dashboard_queries():
        for name, value in (("$instance", ".*"), ("$model", ".*"), ("$__rate_interval", "1m")):
            query = query.replace(name, value)
        ask_prometheus(prometheus, query)
    until("all rules were run", lambda: [rule["health"] for rule in rules(prometheus)] == ["ok"] * 7)


def rules(prometheus: Process) -> list[dict]:
    groups = httpx.get(prometheus.url + "/api/v1/rules").json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]
