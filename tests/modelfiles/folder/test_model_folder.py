"""ModelFolder reads a model folder's facts and refuses what it cannot trust."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from tests.support.modelfiles.model_folders import (
    edit_json,
    make_folder,
    write_json,
    write_raw_safetensors,
    write_safetensors,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "my-model")


def refusal(path: Path) -> ModelFolderError:
    with pytest.raises(ModelFolderError) as caught:
        _ = ModelFolder.open(path).tensors
    assert "\n" not in str(caught.value)
    return caught.value


def test_reads_the_facts_of_a_folder_saved_by_transformers_5(model: Path) -> None:
    folder = ModelFolder.open(model)
    assert folder.name == "my-model"
    assert folder.model_type == "qwen3_vl"
    assert folder.architecture == "Qwen3VLForConditionalGeneration"
    assert folder.max_position_embeddings == 16384
    assert folder.shards == [model / "model.safetensors"]
    assert folder.eos_token_ids == [102, 100]
    assert folder.added_tokens[102] == ("<|im_end|>", True)
    assert folder.image_pixel_limits == (65536, 16777216)
    assert (folder.patch_size, folder.merge_size) == (16, 2)
    assert folder.chat_template is not None
    assert "<|im_start|>" in folder.chat_template


def test_describes_each_tensor_without_its_values(model: Path) -> None:
    tensor = ModelFolder.open(model).tensors["model.language_model.layers.1.mlp.up_proj.weight"]
    assert (tensor.dtype, tensor.shape, tensor.shard) == ("BF16", (96, 64), model / "model.safetensors")
    assert tensor.size == 96 * 64 * 2
    assert tensor.offsets[1] <= tensor.shard.stat().st_size


def test_agrees_with_the_reference_reader(model: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="the reference reader comes with the finetune extra")
    with safetensors.safe_open(model / "model.safetensors", "np") as reference:
        expected = {name: tuple(reference.get_slice(name).get_shape()) for name in reference.keys()}  # noqa: SIM118
    assert {name: tensor.shape for name, tensor in ModelFolder.open(model).tensors.items()} == expected


def test_chat_template_comes_from_the_first_file_that_transformers_would_read(model: Path) -> None:
    edit_json(model / "tokenizer_config.json", chat_template=[{"name": "default", "template": "second"}])
    write_json(model / "chat_template.json", {"chat_template": "third"})
    assert ModelFolder.open(model).chat_template_and_source[1] == "chat_template.jinja"
    (model / "chat_template.jinja").unlink()
    assert ModelFolder.open(model).chat_template_and_source == ("second", "tokenizer_config.json")
    edit_json(model / "tokenizer_config.json", chat_template=None)
    assert ModelFolder.open(model).chat_template_and_source == ("third", "chat_template.json")
    (model / "chat_template.json").unlink()
    assert ModelFolder.open(model).chat_template is None


def test_min_and_max_pixels_win_over_size(model: Path) -> None:
    write_json(
        model / "preprocessor_config.json", {"min_pixels": 1024, "max_pixels": 9999, "size": {"height": 5, "width": 4}}
    )
    assert ModelFolder.open(model).image_pixel_limits == (1024, 9999)
    write_json(model / "preprocessor_config.json", {"size": {"height": 5, "width": 4}})
    assert ModelFolder.open(model).image_pixel_limits == (20, 20)


def test_fingerprint_sees_weights_of_the_same_shape(model: Path, tmp_path: Path) -> None:
    twin = make_folder(tmp_path / "other-name")
    before = ModelFolder.open(model).fingerprint()
    assert ModelFolder.open(twin).fingerprint() == before
    last = ModelFolder.open(twin).shards[0]
    with last.open("r+b") as file:
        file.seek(last.stat().st_size * 3 // 4 // 4096 * 4096)
        file.write(b"\1" * 16384)
    assert ModelFolder.open(twin).fingerprint() != before


def test_reads_a_sharded_folder(model: Path) -> None:
    (model / "model.safetensors").unlink()
    write_safetensors(model / "model-00001-of-00002.safetensors", {"a": [2]})
    write_safetensors(model / "model-00002-of-00002.safetensors", {"b": [3]})
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_json(model / "model.safetensors.index.json", {"weight_map": names})
    assert {name: tensor.shard.name for name, tensor in ModelFolder.open(model).tensors.items()} == names
    (model / "model-00002-of-00002.safetensors").unlink()
    assert refusal(model).rule == "MF107"


def test_names_what_is_missing(tmp_path: Path, model: Path) -> None:
    assert "does not exist" in str(refusal(tmp_path / "nowhere"))
    assert "is a file" in str(refusal(model / "config.json"))
    assert "no config.json" in str(refusal(tmp_path))
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").touch()
    assert "pytorch_model.bin is not safetensors" in str(refusal(model))


def test_a_peft_adapter_is_called_an_adapter(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {})
    write_safetensors(tmp_path / "adapter_model.safetensors", {"lora_A": [2]})
    assert refusal(tmp_path).rule == "MF102"
    write_json(tmp_path / "config.json", {})
    assert refusal(tmp_path).rule == "MF102"


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 100_000, '{"a":' * 100 + "1" + "}" * 100, '{"a": ' + "9" * 5000 + "}", "\x00"]
)
def test_refuses_a_broken_config(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert refusal(model).rule == "MF104"


def test_refuses_git_lfs_pointers(model: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (model / "model.safetensors").write_text(pointer)
    assert refusal(model).rule == "MF105"
    make_folder(model)
    (model / "config.json").write_text(pointer)
    assert refusal(model).rule == "MF105"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "chat_template.jinja"])
def test_refuses_links_that_leave_the_folder(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).rename(tmp_path / name)
    (model / name).symlink_to(tmp_path / name)
    with pytest.raises(ModelFolderError, match="leaves the folder"):
        _ = ModelFolder.open(model).chat_template


def test_follows_links_inside_the_folder_and_inside_the_hugging_face_cache(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "models--me--m" / "snapshots" / "abc")
    blobs = tmp_path / "models--me--m" / "blobs"
    blobs.mkdir()
    (model / "model.safetensors").rename(blobs / "123")
    (model / "model.safetensors").symlink_to("../../blobs/123")
    (model / "config.json").rename(model / "real.json")
    (model / "config.json").symlink_to("real.json")
    assert len(ModelFolder.open(model).tensors) == 64


def test_refuses_a_pipe_instead_of_a_file(model: Path) -> None:
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    assert refusal(model).rule == "MF103"


def test_refuses_shards_outside_the_folder(model: Path) -> None:
    write_json(model / "model.safetensors.index.json", {"weight_map": {"a": "../model.safetensors"}})
    assert refusal(model).rule == "MF103"
    write_json(model / "model.safetensors.index.json", {"weight_map": {"a": ["x"]}})
    assert refusal(model).rule == "MF104"


def test_refuses_a_header_that_claims_ten_gigabytes(model: Path) -> None:
    write_raw_safetensors(model / "model.safetensors", b"{}", 0, claimed=10 * 2**30)
    assert "10,737,418,240 bytes" in str(refusal(model))
    write_raw_safetensors(model / "model.safetensors", b"{}", 11 * 2**30, claimed=10 * 2**30)  # a sparse file
    assert "the limit is 100,000,000" in str(refusal(model))
    write_raw_safetensors(model / "model.safetensors", b"{}", 0, claimed=50_000_000)
    assert refusal(model).rule == "MF106"


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 1},
        {"a": entry(dtype="F31")},
        {"a": entry(dtype=["F32"])},
        {"a": entry(shape=[-2])},
        {"a": entry(shape=[True, 2])},
        {"a": entry(shape=[2**62, 2**62])},
        {"a": entry(shape=[1] * 17)},
        {"a": entry(offsets=[0, 16])},
        {"a": entry(offsets=[8, 0])},
        {"a": entry(offsets=[0, 4])},
        {"a": entry(), "b": entry()},
        {"a": entry(shape=[1], offsets=[4, 8])},
        {"a": entry(shape=[1], offsets=[0, 4])},
    ],
)
def test_refuses_a_header_whose_numbers_do_not_add_up(model: Path, header: object) -> None:
    write_raw_safetensors(model / "model.safetensors", json.dumps(header).encode(), 8)
    assert refusal(model).rule == "MF106"


numbers = st.one_of(st.integers(-3, 40), st.integers(2**62, 2**66), st.booleans(), st.none(), st.text(max_size=2))
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F4", "BF16", "I64", "", None]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, max_size=3),
    }
)


@given(header=st.one_of(st.binary(max_size=40), st.dictionaries(st.text(max_size=3), entries).map(json.dumps)))
def test_random_headers_are_refused_or_read_but_never_crash(
    tmp_path_factory: pytest.TempPathFactory, header: bytes | str
) -> None:
    path = tmp_path_factory.mktemp("random")
    write_json(path / "config.json", {})
    write_raw_safetensors(path / "model.safetensors", header if isinstance(header, bytes) else header.encode(), 16)
    try:
        tensors = ModelFolder.open(path).tensors.values()
    except ModelFolderError:
        return
    assert sum(tensor.size for tensor in tensors) == 16
