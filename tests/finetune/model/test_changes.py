"""The arithmetic of a merge, on matrices small enough to be computed in another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from finetune.model import changes
from finetune.model.changes import Change, Delta, Dequantised, Replaced, dequantised, row_blocks
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.folder.safetensors_header import TensorInfo, read_header
from tests.support.paths import SHAPES_VL

ROWS, COLUMNS, RANK = 5, 3, 2
BLOCK = slice(1, 4)


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    shapes = {"old": (ROWS, COLUMNS), "new": (ROWS, COLUMNS), "a": (RANK, COLUMNS), "b": (ROWS, RANK)}
    made = {name: torch.randn(shape) for name, shape in shapes.items()}
    return made | {"lengths": torch.rand(ROWS) + 0.5, "one": torch.tensor(1.0), "deep": torch.zeros(7, 2, 5)}


@pytest.fixture
def infos(values: dict[str, torch.Tensor], tmp_path: Path) -> dict[str, TensorInfo]:
    save_file(values, tmp_path / "model.safetensors")
    return read_header(tmp_path / "model.safetensors")


def test_a_delta_adds_its_scaled_product(values: dict[str, Any], infos: dict[str, TensorInfo]) -> None:
    made = Delta("w", infos["a"], infos["b"], 0.5, None).merged(values["old"][BLOCK], BLOCK)
    expected = values["old"] + 0.5 * torch.einsum("or,ri->oi", values["b"], values["a"])
    torch.testing.assert_close(made, expected[BLOCK])


def test_doras_rows_keep_their_direction_and_get_its_lengths(
    values: dict[str, Any], infos: dict[str, TensorInfo]
) -> None:
    made = Delta("w", infos["a"], infos["b"], 0.5, infos["lengths"]).merged(values["old"][BLOCK], BLOCK)
    plain = Delta("w", infos["a"], infos["b"], 0.5, None).merged(values["old"][BLOCK], BLOCK)
    torch.testing.assert_close(made.norm(dim=1), values["lengths"][BLOCK])
    torch.testing.assert_close(torch.cosine_similarity(made, plain), torch.ones(3))


def test_a_weight_trained_whole_takes_the_place_of_the_old_one(
    values: dict[str, Any], infos: dict[str, TensorInfo]
) -> None:
    assert torch.equal(Replaced("w", infos["new"]).merged(values["old"][BLOCK], BLOCK), values["new"][BLOCK])


@pytest.mark.parametrize(
    ("block_bytes", "size"), [(1, 1), (79, 1), (80, 2), (119, 2), (120, 3), (280, 7), (1 << 20, 7)]
)
def test_blocks_are_as_many_whole_rows_as_fit(
    infos: dict[str, TensorInfo], monkeypatch: pytest.MonkeyPatch, block_bytes: int, size: int
) -> None:
    """A row of 2 x 5 float32 values has 40 bytes."""
    monkeypatch.setattr(changes, "BLOCK_BYTES", block_bytes)
    blocks = list(row_blocks(Replaced("w", infos["deep"]), infos["deep"]))
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(7))
    assert [block.stop - block.start for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert len(blocks) == -(-7 // size)


def test_a_number_and_a_dequantised_weight_are_one_block(
    infos: dict[str, TensorInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "BLOCK_BYTES", 1)
    assert list(row_blocks(Replaced("w", infos["one"]), infos["one"])) == [slice(0, 1)]
    assert list(row_blocks(Dequantised("w", torch.float32, True, None), infos["deep"])) == [slice(0, 7)]


def test_every_weight_that_training_saw_in_4_bits_is_dequantised(infos: dict[str, TensorInfo]) -> None:
    folder = ModelFolder.open(SHAPES_VL)
    layer = "model.language_model.layers.0.mlp"
    adapted: list[Change] = [
        Delta(f"{layer}.up_proj.weight", infos["a"], infos["b"], 0.5, None),
        Replaced(f"{layer}.down_proj.weight", infos["new"]),
        Replaced("model.language_model.norm.weight", infos["one"]),
    ]
    made = {change.weight: change for change in dequantised(folder, adapted, double=True)}
    kinds = {name: type(change) for name, change in made.items()}
    matrices = {name for name, info in folder.tensors.items() if ".layers." in name and len(info.shape) == 2}
    assert kinds.keys() == {name for name in matrices if "language_model" in name} | {adapted[2].weight}
    assert {name for name, kind in kinds.items() if kind is not Dequantised} == {c.weight for c in adapted[1:]}
    up, other = made[adapted[0].weight], made[f"{layer}.gate_proj.weight"]
    assert isinstance(up, Dequantised)
    assert isinstance(other, Dequantised)
    assert (up.delta, up.double, up.dtype) == (adapted[0], True, torch.bfloat16)
    assert other.delta is None
