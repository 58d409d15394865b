"""The Kubernetes files: built by kustomize, valid by Kubernetes' schemas, true to each other and to the programs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from finetune.recipe.load import make_recipe
from gateway.config.settings import Settings
from gateway.telemetry.metrics import Metrics
from lensmith import main
from tests.support.paths import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
BUILDS = ["overlays/t4", "overlays/multi-gpu", "overlays/multi-node", "overlays/serverless", "train"]
# Custom resources, of which kubernetes-validate has no schema: what they need is checked here by hand.
CUSTOM = {
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "Service": "serving.knative.dev/v1",
}

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl 1.21 or newer")


@pytest.fixture(scope="module")
def built() -> dict[str, list[dict[str, Any]]]:
    """The manifests of every build, by its folder."""
    manifests = {}
    for name in BUILDS:
        run = subprocess.run(["kubectl", "kustomize", KUBERNETES / name], capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        manifests[name] = list(yaml.safe_load_all(run.stdout))
    return manifests


def find(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind and m["apiVersion"] not in CUSTOM.values()}


def owners(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What makes pods."""
    kinds = ("Deployment", "StatefulSet", "Job")
    return [m for m in manifests if m["kind"] in kinds or m["apiVersion"] == CUSTOM["Service"]]


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod templates by the name of what owns them."""
    return {m["metadata"]["name"]: m["spec"]["template"] for m in owners(manifests)}


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


@pytest.mark.parametrize("name", BUILDS)
def test_every_manifest_is_valid(built: dict[str, list[dict[str, Any]]], name: str, tmp_path: Path) -> None:
    known = [m for m in built[name] if m["apiVersion"] not in CUSTOM.values()]
    file = tmp_path / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(known))
    command = [Path(sys.executable).with_name("kubernetes-validate"), "--strict", file]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "find schema" not in run.stdout + run.stderr


@pytest.mark.parametrize("name", BUILDS)
def test_no_container_runs_as_root_or_gains_rights(built: dict[str, list[dict[str, Any]]], name: str) -> None:
    assert pods(built[name])
    for template in pods(built[name]).values():
        for container in containers(template):
            own = container["securityContext"]
            pod = template["spec"].get("securityContext", {})
            assert own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own.get("seccompProfile", pod.get("seccompProfile")) == {"type": "RuntimeDefault"}
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", BUILDS)
def test_every_volume_mount_has_its_volume_and_every_claim_exists(
    built: dict[str, list[dict[str, Any]]], name: str
) -> None:
    # The training Job writes to the claim that serving made.
    claims = {*find(built[name], "PersistentVolumeClaim"), *({"model"} if name == "train" else set())}
    for owner in owners(built[name]):
        template = owner["spec"]["template"]
        volumes = {v["name"] for v in template["spec"]["volumes"]}
        volumes |= {v["metadata"]["name"] for v in owner["spec"].get("volumeClaimTemplates", [])}
        for container in containers(template):
            assert {m["name"] for m in container["volumeMounts"]} <= volumes
        sources = [v["persistentVolumeClaim"] for v in template["spec"]["volumes"] if "persistentVolumeClaim" in v]
        used = {source["claimName"] for source in sources}
        assert used <= claims


@pytest.mark.parametrize("name", ["overlays/t4", "overlays/multi-gpu", "overlays/multi-node"])
def test_selectors_find_their_pods(built: dict[str, list[dict[str, Any]]], name: str) -> None:
    labels = [t["metadata"]["labels"] for t in pods(built[name]).values()]
    selectors = [s["spec"]["selector"] for s in find(built[name], "Service").values()]
    selectors += [p["spec"]["selector"]["matchLabels"] for p in find(built[name], "PodDisruptionBudget").values()]
    policies = [p["spec"]["podSelector"] for p in find(built[name], "NetworkPolicy").values()]
    selectors += [selector["matchLabels"] for selector in policies if "matchLabels" in selector]
    assert len(selectors) >= 5
    for selector in selectors:
        assert any(selector.items() <= have.items() for have in labels), selector


@pytest.mark.parametrize("name", ["overlays/t4", "overlays/multi-gpu"])
def test_only_the_gateway_reaches_engines(built: dict[str, list[dict[str, Any]]], name: str) -> None:
    policies = [p["spec"] for p in find(built[name], "NetworkPolicy").values()]
    engine = pods(built[name])["engine"]["metadata"]["labels"]
    over_engine = [p for p in policies if p["podSelector"]["matchLabels"].items() <= engine.items()]
    allowed = [source for p in over_engine for rule in p["ingress"] for source in rule["from"]]
    gateway = {"app.kubernetes.io/name": "gateway"}
    assert allowed == [{"podSelector": {"matchLabels": gateway}}]
    assert all(p["egress"] == [] for p in over_engine)


def entrypoint(image: str) -> list[str]:
    """What an image of ours starts, of its Dockerfile."""
    text = (ROOT / "deploy" / "docker" / f"{image.partition(':')[0].removeprefix('lensmith/')}.Dockerfile").read_text()
    words: list[str] = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.M)[-1])
    return words


@pytest.mark.parametrize("name", BUILDS)
def test_containers_start_commands_that_there_are_with_options_that_these_have(
    built: dict[str, list[dict[str, Any]]], name: str
) -> None:
    for template in pods(built[name]).values():
        for container in containers(template):
            words = [*(container.get("command") or entrypoint(container["image"])), *container.get("args", [])]
            if words[0] != "lensmith":
                assert words[0] in ("engine", "ray", "sh"), words
                continue
            command = main.get_command(click.Context(main), words[1])
            assert command is not None, words
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known


def test_the_training_jobs_recipes_are_ones(built: dict[str, list[dict[str, Any]]]) -> None:
    (recipes,) = find(built["train"], "ConfigMap").values()
    steps = [container["args"] for container in containers(pods(built["train"])["train"])]
    assert [step[1].removeprefix("/recipe/") for step in steps] == ["train.yaml", "export.yaml"]
    train, export = (yaml.safe_load(recipes["data"][step[1].removeprefix("/recipe/")]) for step in steps)
    assert make_recipe(train).output_dir == make_recipe(export).adapter_name_or_path


def test_the_autoscaler_reads_a_metric_that_the_gateway_has(built: dict[str, list[dict[str, Any]]]) -> None:
    scaler = find(built["overlays/t4"], "HorizontalPodAutoscaler")["gateway"]["spec"]
    assert scaler["scaleTargetRef"]["name"] in find(built["overlays/t4"], "Deployment")
    metric = next(m["pods"]["metric"]["name"] for m in scaler["metrics"] if m["type"] == "Pods")
    assert f"# TYPE {metric} gauge" in Metrics().exposition().decode()


SERVING = ["overlays/t4", "overlays/multi-gpu", "overlays/multi-node"]


@pytest.mark.parametrize("name", BUILDS)
def test_nothing_is_mounted_by_a_sub_path(built: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Such a file never changes in a running pod: a key that was revoked would go on working."""
    for template in pods(built[name]).values():
        for container in containers(template):
            assert not [mount for mount in container["volumeMounts"] if "subPath" in mount]


@pytest.mark.parametrize("name", SERVING)
def test_the_configuration_finds_its_files_where_they_are_mounted(
    built: dict[str, list[dict[str, Any]]], name: str
) -> None:
    (container,) = pods(built[name])["gateway"]["spec"]["containers"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    (data,) = [m["data"] for m in find(built[name], "ConfigMap").values() if "gateway.yaml" in m["data"]]
    config = yaml.safe_load(data["gateway.yaml"])
    assert {"/etc/lensmith", config["keys"].rsplit("/", 1)[0], config["models"]["model"]["folder"]} <= mounted


@pytest.mark.parametrize("name", SERVING)
def test_a_pod_has_the_time_to_pause_and_drain(built: dict[str, list[dict[str, Any]]], name: str) -> None:
    spec = pods(built[name])["gateway"]["spec"]
    pause = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause >= 5
    assert spec["terminationGracePeriodSeconds"] > pause + Settings().drain_seconds


@pytest.mark.parametrize("name", SERVING)
def test_the_operator_scrapes_the_job_that_the_alerts_look_for(
    built: dict[str, list[dict[str, Any]]], name: str
) -> None:
    custom = {m["kind"]: m for m in built[name] if m["apiVersion"] == CUSTOM["PrometheusRule"]}
    monitor, service = custom["ServiceMonitor"]["spec"], find(built[name], "Service")["gateway"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= service.items()
    prometheus = KUBERNETES.parent / "prometheus"
    alerts = yaml.safe_load((prometheus / "alerts.yml").read_text())
    assert custom["PrometheusRule"]["spec"] == alerts
    jobs = set(re.findall(r'job="([^"]+)"', str(alerts)))
    assert jobs == {service[monitor["jobLabel"]]}
    scraped = yaml.safe_load((prometheus / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs == {config["job_name"] for config in scraped}
