"""Dockerfiles, shell scripts and the compose file, each checked by the field's own linter."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config.file import ConfigFile
from tests.support.gateway.processes import fake_engine
from tests.support.paths import ROOT

TOOLS = Path(sys.executable).parent
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
SCRIPTS = [ROOT / "deploy" / "docker" / "engine.sh", ROOT / "scripts" / "setup", ROOT / ".ci" / "run"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    run = subprocess.run([TOOLS / "hadolint", "--no-color", file], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_an_image_copies_only_what_the_context_has(file: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert ignore[0] == "*"
    sent = {line[1:] for line in ignore[1:] if line.startswith("!")}
    copies = [line for line in file.read_text().splitlines() if line.startswith("COPY ") and "--from" not in line]
    sources = {word for line in copies for word in line.split()[1:-1] if not word.startswith("--")}
    assert sources
    assert sources <= sent
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_shellcheck_has_nothing_to_say(file: Path) -> None:
    run = subprocess.run([TOOLS / "shellcheck", file], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "")


def works(command: list[str]) -> bool:
    return shutil.which(command[0]) is not None and not subprocess.run(command, capture_output=True).returncode


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The compose file as Compose itself reads it."""
    commands = (["docker-compose"], ["docker", "compose"])
    command = next((command for command in commands if works([*command, "version"])), None)
    if command is None:
        pytest.skip("needs docker-compose, or docker with its plugin `compose`")
    model = tmp_path_factory.mktemp("model")
    run = subprocess.run(
        [*command, "-f", ROOT / "deploy" / "compose.yaml", "config"],
        env={**os.environ, "MODEL_DIR": str(model), "LENSMITH_ENGINE_KEY": "secret"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    read: dict[str, Any] = yaml.safe_load(run.stdout)
    return read


def test_compose_wants_a_model_and_a_key() -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    assert "${MODEL_DIR:?" in text
    assert "${LENSMITH_ENGINE_KEY:?" in text


def test_the_engine_and_prometheus_are_not_published(compose: dict[str, Any]) -> None:
    services = compose["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"gateway", "grafana"}
    assert list(services["engine"]["networks"]) == ["inside"]
    assert compose["networks"]["inside"]["internal"] is True


def test_everything_mounted_from_here_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0] if isinstance(volume, str) else volume["source"]
            if source.startswith(str(ROOT / "deploy")) and not source.endswith("/keys"):
                assert Path(source).exists(), source


def test_keys_are_mounted_as_a_folder(compose: dict[str, Any]) -> None:
    """A mounted file stays the one it was when `lensmith keys` puts another in its place."""
    keys = ConfigFile(ROOT / "deploy" / "gateway.compose.yaml").read().keys
    mounts = compose["services"]["gateway"]["volumes"]  # as texts or objects, by the version of Compose
    assert str(keys.parent) in [mount.split(":")[1] if isinstance(mount, str) else mount["target"] for mount in mounts]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_health_checks_go_past_a_proxy(file: Path, tmp_path: Path) -> None:
    """As the image runs them, where the environment names a proxy that answers nothing."""
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])\n", file.read_text(), re.S)
    if found is None:
        assert file.stem.startswith("trainer")
        return
    _, *arguments = json.loads(found[1])
    with fake_engine() as engine:
        environment = {
            "PATH": os.environ["PATH"],
            "http_proxy": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
        arguments = [re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{engine.port}", argument) for argument in arguments]
        assert subprocess.run([sys.executable, *arguments], env=environment, timeout=60).returncode == 0


@pytest.mark.parametrize(
    "file",
    [
        "gateway.compose.yaml",
        "kubernetes/base/gateway-config.yaml",
        "kubernetes/overlays/multi-gpu/gateway-config.yaml",
    ],
)
def test_the_gateway_takes_its_configuration(file: str) -> None:
    config = ConfigFile(ROOT / "deploy" / file).read()
    assert (config.host, config.port, config.management_port) == ("0.0.0.0", 8000, 9000)
    model = config.models["model"]
    assert str(model.folder) == "/model"
    assert {replica.api_key_env for replica in model.replicas} == {"LENSMITH_ENGINE_KEY"}


def start_engine(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run engine.sh with an `lmdeploy` that prints its arguments and threads instead of serving."""
    stand_in = tmp_path / "lmdeploy"
    stand_in.write_text('#!/bin/sh\necho "threads $OMP_NUM_THREADS $MKL_NUM_THREADS"\necho "lmdeploy $*"\n')
    stand_in.chmod(0o755)
    return subprocess.run(
        [ROOT / "deploy" / "docker" / "engine.sh", "--log-level", "INFO"],
        env={"PATH": f"{tmp_path}:{TOOLS}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_engine_container_starts_lmdeploy_as_planned(tmp_path: Path) -> None:
    model = ROOT / "examples" / "shapes-vl"
    run = start_engine(tmp_path, LENSMITH_MODEL_DIR=str(model), LENSMITH_ENGINE_KEY="secret", LENSMITH_GPU="t4")
    assert run.returncode == 0, run.stderr
    threads, command = run.stdout.splitlines()
    assert threads == "threads 4 4"
    assert command.startswith(f"lmdeploy serve api_server {model} ")
    for flags in ("--api-keys secret", "--backend pytorch", "--dtype float16", "--eager-mode", "--log-level INFO"):
        assert flags in command
    # What the gateway counts on of an engine at a URL.
    for flags in ("--logprobs-mode raw_logprobs", "--enable-abort-handling"):
        assert flags in command


def test_the_engine_container_says_what_is_missing(tmp_path: Path) -> None:
    run = start_engine(tmp_path, LENSMITH_MODEL_DIR=str(ROOT / "examples" / "shapes-vl"), LENSMITH_GPU="t4")
    assert run.returncode != 0
    assert "LENSMITH_ENGINE_KEY" in run.stderr
    run = start_engine(tmp_path, LENSMITH_MODEL_DIR=str(tmp_path), LENSMITH_ENGINE_KEY="secret", LENSMITH_GPU="t4")
    assert run.returncode == 1
    assert "config.json" in run.stderr
