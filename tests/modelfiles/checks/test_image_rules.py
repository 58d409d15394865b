"""What Ollama does to images, by its version: their sizes, and neighbours that it takes for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelfiles.checks.doctor import check_folder
from modelfiles.cli.group import modelfile
from tests.support.modelfiles.model_folders import gguf, make_folder
from tests.support.paths import SHAPES_VL

MIB = 1024 * 1024  # pixels of 1024 tokens, where a token is 32 x 32


def run(*args: object) -> Result:
    return CliRunner().invoke(modelfile, [str(arg) for arg in args])


def set_sizes(folder: Path, min_pixels: int, max_pixels: int) -> Path:
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text())
    processor["image_processor"]["size"] = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    path.write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize(
    ("family", "sizes", "ollama", "rule"),
    [
        ("qwen3_vl", (4096, 65536), (0, 33, 0), "MF222"),
        ("qwen3_vl", (4096, MIB - 1024), (0, 33, 0), "MF222"),
        ("qwen3_vl", (4096, MIB), (0, 33, 0), "MF223"),
        ("qwen3_vl", (MIB - 1024, 16 * MIB), (0, 33, 0), "MF223"),
        ("qwen3_vl", (MIB, 16 * MIB), (0, 33, 0), None),
        ("qwen3_vl", (4096, 65536), (0, 29, 9), None),  # before llama-server, a model's own limits held
        ("qwen3_vl_moe", (4096, 65536), (0, 33, 0), "MF222"),
        ("qwen2_5_vl", (4096, 65536), (0, 33, 0), "MF222"),
        ("qwen2_vl", (4096, 65536), (0, 33, 0), "MF222"),
        ("qwen3_5", (4096, 65536), (0, 33, 0), None),  # gets no minimum
        ("gemma3", (4096, 65536), (0, 33, 0), None),  # always 256 tokens
    ],
)
def test_sizes_of_training_are_held_against_those_of_ollama(
    family: str, sizes: tuple[int, int], ollama: tuple[int, int, int], rule: str | None, tmp_path: Path
) -> None:
    folder = set_sizes(make_folder(tmp_path / "model", family), *sizes)
    found = {finding.rule for finding in check_folder(folder, ollama=ollama)} & {"MF222", "MF223"}
    assert found == ({rule} if rule else set())


def test_generate_writes_the_stage_and_prints_what_does_work(tmp_path: Path) -> None:
    result = run("generate", SHAPES_VL, "-o", tmp_path / "stage")
    assert result.exit_code == 0
    assert "error MF222" in result.output
    assert "llama-server -m model.gguf --mmproj mmproj.gguf" in result.output
    assert "--image-min-tokens 4 --image-max-tokens 64" in result.output


def test_lint_and_doctor_say_the_sizes_once(tmp_path: Path) -> None:
    run("generate", SHAPES_VL, "-o", tmp_path / "stage")
    for command in (("lint", tmp_path / "stage" / "Modelfile"), ("doctor", tmp_path / "stage")):
        result = run(*command, "--images-per-request", 1)
        assert result.exit_code == 2
        assert result.output.count("MF222") == 1


@pytest.mark.parametrize(
    ("ollama", "images", "fused"),
    [
        ("0.30.8", 2, False), ("0.30.9", 2, True), ("0.33.0-rc2", 2, True), ("0.33.1", 2, False), ("0.33.0", 1, False),
    ],
)  # fmt: skip
def test_fused_neighbours_are_a_matter_of_versions(ollama: str, images: int, fused: bool, tmp_path: Path) -> None:
    args = ("--ollama", ollama, "--images-per-request", images)
    result = run("generate", make_folder(tmp_path / "model"), "-o", tmp_path / "stage", *args)
    assert ("MF411" in result.output) == fused
    assert ("[img] [img]" in result.output) == fused
    assert ("MF411" in run("lint", tmp_path / "stage" / "Modelfile", *args).output) == fused


def test_other_architectures_are_not_fused(tmp_path: Path) -> None:
    result = run("generate", make_folder(tmp_path / "model", "qwen3_5"), "-o", tmp_path / "stage")
    assert "MF411" not in result.output


@pytest.mark.parametrize(("architecture", "rule"), [("qwen3vl", "MF222"), ("qwen25vl", "MF222"), ("qwen35", None)])
def test_a_gguf_pair_says_its_sizes_itself(architecture: str, rule: str | None, tmp_path: Path) -> None:
    gguf(tmp_path / "model.gguf", general__architecture=architecture)
    gguf(
        tmp_path / "mmproj.gguf",
        **{"general__type": "mmproj", "clip__vision__patch_size": 16, "clip__vision__spatial_merge_size": 2},
        **{"clip__vision__image_min_pixels": 4096, "clip__vision__image_max_pixels": 65536},
    )
    (tmp_path / "Modelfile").write_text("FROM ./model.gguf\nFROM ./mmproj.gguf\n")
    output = run("lint", tmp_path / "Modelfile").output
    assert ("MF222" in output) == (rule == "MF222")
    assert ("--image-max-tokens 64" in output) == (rule == "MF222")
