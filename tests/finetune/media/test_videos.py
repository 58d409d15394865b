"""Rows with videos, in each family: ids, positions, pixels, losses, training and answers, by transformers' own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from finetune.data.datasets import load_rows
from finetune.data.formats import Row
from finetune.encoding.proof import prove_encoding
from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import compare_runs, evaluate
from finetune.export.merge import merge
from finetune.families.batch import collate_train
from finetune.families.features import FrozenFeatures, TrainedVision
from finetune.families.forward import LabelLoss
from finetune.families.qwen_vl import load_processor
from finetune.media.image_files import decode
from finetune.media.pixel_limits import pixel_limits
from finetune.media.videos import VideoRules
from finetune.memory.heaviest_load import heaviest_load
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.model.targets import make_trainable
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from finetune.training.dataset import TrainingData, load_training_data
from finetune.training.loop import train
from tests.support.finetune.families import FAMILIES, family_folder, reference_positions
from tests.support.finetune.shapes_data import write_dataset
from tests.support.finetune.video_data import decoded, spoil, write_frames, write_video

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")


def chat(question: str, answer: str, videos: list[Any], images: list[str] | None = None) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "videos": videos} | ({"images": images} if images else {})


@pytest.fixture
def videos(dataset: Path) -> list[dict[str, Any]]:
    """Chats with a file, a list of frames, and both with an image; the long video has more pairs than token rows."""
    write_video(dataset / "short.mp4")
    write_video(dataset / "long.mkv", frames=27, size=(96, 64), fps=3)
    frames = [f"frames/{path.name}" for path in write_frames(dataset / "frames", decoded(dataset / "short.mp4")[:5])]
    mixed = chat("<image>now <video>", "same", ["short.mp4", frames], ["images/1.png"])
    mixed["conversations"] += [{"from": "human", "value": "and: <video>?"}, {"from": "gpt", "value": "no"}]
    chats = [
        chat("<video>what moves?", "red", ["short.mp4"]),
        chat("look: <video> what is it?", "a ball", ["long.mkv"]),
        chat("<video>what?", "blue", [frames]),
        mixed,
        chat("<image>color?", "red", [], ["images/0.png"]),
    ]
    write_dataset(dataset, chats)
    return chats


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recipe_of(recipe: MakeRecipe, videos: list[Any], family: str, tmp_path: Path) -> MakeRecipe:
    folder = family_folder(family, tmp_path / family)
    return lambda **keys: recipe(**{"model_name_or_path": str(folder), "per_device_train_batch_size": 2} | keys)


def load(recipe: Recipe) -> TrainingData:
    return load_training_data(recipe, Console(quiet=True))


def theirs(data: TrainingData, row: Row, media: tuple[int, ...]) -> Any:
    """What the model's own processor makes of the chat with our frames."""
    clips = [data.bank.clips[index] for index in media if index in data.bank.clips]
    inputs = data.processor(
        text=[data.processor.apply_chat_template(row.messages, tokenize=False)],
        images=[decode(path) for path in row.images] or None,
        videos=[clip.frames() for clip in clips] or None,
        video_metadata=[clip.metadata for clip in clips] or None,
        do_sample_frames=False,
        return_tensors="pt",
    )
    if "second_per_grid_ts" in inputs:  # transformers 4.57 takes it from another argument
        inputs["second_per_grid_ts"] = torch.tensor([clip.seconds_a_pair for clip in clips])
    return inputs


def test_ids_are_the_processors(recipe_of: MakeRecipe, family: str) -> None:
    data = load(recipe_of())
    rows = load_rows("shapes", recipe_of()).rows
    prove_encoding(rows, data.rows, data.processor, data.bank)
    for row, ours in zip(rows, data.rows, strict=True):
        assert theirs(data, row, ours.images)["input_ids"][0].tolist() == ours.ids.tolist()
    wrong = replace(data.rows[0], ids=data.rows[0].ids[1:])
    with pytest.raises(FinetuneError, match="row 1: this model's processor gives"):
        prove_encoding(rows[:1], [wrong], data.processor, data.bank)
    tokenizer = data.processor.tokenizer
    assert [tokenizer.decode(row.ids[row.labelled]) for row in data.rows] == [
        "red<|im_end|>\n", "a ball<|im_end|>\n", "blue<|im_end|>\n", "same<|im_end|>\nno<|im_end|>\n",
        "red<|im_end|>\n",
    ]  # fmt: skip
    text = tokenizer.decode(data.rows[0].ids)
    assert ("<0.3 seconds>" in text) == (family == "qwen3_vl")  # frames 0 and 6 of 20, at 10 a second


def test_positions_are_the_models(recipe_of: MakeRecipe, family: str) -> None:
    data = load(recipe_of())
    for row in data.rows:
        clips = [data.bank.clips[i] for i in row.images if i in data.bank.clips]
        images = [data.bank.grids[i] for i in row.images if i not in data.bank.clips]
        videos, seconds = [clip.grid for clip in clips], [clip.seconds_a_pair for clip in clips]
        wanted = reference_positions(family, data.folder.path, row.ids, images, videos, seconds)
        assert np.array_equal(wanted, row.positions), row.source
    if family == "qwen2_5_vl":
        assert [clip.seconds_a_pair for clip in data.bank.clips.values()] == pytest.approx([1.0, 1.0, 2.5 / 3])


def test_the_loss_is_the_models(recipe_of: MakeRecipe) -> None:
    data = load(recipe_of())
    base = load_base(data.folder, recipe_of(), CPU, torch.float32)
    used = [image for row in data.rows for image in row.images]
    features = FrozenFeatures(base, data.bank, data.processor, used, reused=True)
    assert features.cached
    for row, ours in zip(load_rows("shapes", recipe_of()).rows, data.rows, strict=True):
        inputs = theirs(data, row, ours.images)
        labels = inputs["input_ids"].clone()
        labels[0, ~torch.from_numpy(ours.labelled)] = -100
        batch = collate_train([ours], CPU)
        loss = LabelLoss(base)(batch, features.get(batch.images)) / len(batch.labels)
        assert torch.allclose(loss, base(**inputs, labels=labels).loss, rtol=1e-4), row.source
    features.close()


def test_gradients_flow_through_the_tower(recipe_of: MakeRecipe) -> None:
    made = recipe_of(freeze_vision_tower=False, freeze_multi_modal_projector=False)
    data = load(made)
    base = load_base(data.folder, made, CPU, torch.float32)
    model = make_trainable(base, made)
    vision = TrainedVision(base, CPU, data.bank, data.processor)
    batch = collate_train(data.rows[:3], CPU)
    for _ in range(2):
        model.zero_grad()
        LabelLoss(base)(batch, vision.get(batch.images)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad
    vision.close()
    seen = [p.grad for name, p in model.named_parameters() if p.requires_grad and "visual.blocks" in name]
    assert seen
    assert all(torch.isfinite(gradient).all() and gradient.abs().sum() > 0 for gradient in seen)


def test_a_run_goes_on_bit_for_bit_and_answers_as_merged(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"save_steps": 2, "learning_rate": 0.01, "max_steps": 12, "val_size": 1}
    train(recipe_of(eval_dataset=None, **keys))
    shutil.copytree(tmp_path / "out/checkpoint-2", tmp_path / "half/checkpoint-2")
    train(recipe_of(eval_dataset=None, **keys, output_dir=str(tmp_path / "half")))
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("out", "half")]
    assert adapters[0] == adapters[1]
    with pytest.raises(FinetuneError, match=r"made with video_fps 2\.0, now it is 1\.0"):
        train(recipe_of(eval_dataset=None, **(keys | {"video_fps": 1.0, "max_steps": 14})))

    trained = {"adapter_name_or_path": str(tmp_path / "out")}
    target = merge(recipe_of(**trained, export_dir=str(tmp_path / "merged")))
    evaluate(recipe_of(**trained, output_dir=str(tmp_path / "first")))
    evaluate(recipe_of(model_name_or_path=str(target), output_dir=str(tmp_path / "second")))
    first, second = ((tmp_path / name / "generated_predictions.jsonl").read_text() for name in ("first", "second"))
    assert first == second
    records = [json.loads(line) for line in first.splitlines()]
    assert records[0]["prompt"] == "<video>what moves?"
    assert [Path(video).name for video in records[0]["videos"]] == ["short.mp4"]
    assert [Path(frame).name for frame in records[2]["videos"][0]] == [f"{n:03}.png" for n in range(5)]
    assert "videos" not in records[4]
    assert "<img" in (tmp_path / "out/report.html").read_text()
    compare_runs(tmp_path / "first", tmp_path / "second", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<img") == 7  # each image, and each video's first frame


def test_answers_are_transformers_generates(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    made = recipe_of(max_new_tokens=6, per_device_eval_batch_size=4)
    evaluate(made)
    lines = (tmp_path / "out/generated_predictions.jsonl").read_text().splitlines()
    data = load(made)
    model = AutoModelForImageTextToText.from_pretrained(data.folder.path, dtype=torch.float32)
    for row, ours, line in zip(load_rows("shapes", made).rows, data.rows, lines, strict=True):
        inputs = theirs(data, row, ours.images)
        end = int(np.flatnonzero(ours.labelled & ~np.roll(ours.labelled, 1))[-1])  # where the last answer begins
        for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if key in inputs:
                inputs[key] = inputs[key][:, :end]
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, end:]
        assert json.loads(line)["predict"] == data.processor.tokenizer.decode(ids, skip_special_tokens=True), row.source


def test_a_file_and_its_frames_are_the_same(recipe_of: MakeRecipe, dataset: Path) -> None:
    images = decoded(write_video(dataset / "slow.mp4", frames=7, fps=2))
    frames = [f"slow/{path.name}" for path in write_frames(dataset / "slow", images)]
    write_dataset(dataset, [chat("<video>what?", "red", ["slow.mp4"]), chat("<video>what?", "red", [frames])])
    data = load(recipe_of())
    one, other = data.rows
    assert np.array_equal(one.ids, other.ids)
    assert np.array_equal(one.positions, other.positions)
    first, second = (data.bank.clips[row.images[0]] for row in data.rows)
    assert first.indices == second.indices == (0, 1, 2, 3, 4, 5, 6, 6)
    assert np.array_equal(first.frames(), second.frames())
    assert np.array_equal(first.frames()[2], np.asarray(images[2]))
    pixels, grid = first.pixels()
    assert torch.equal(pixels, second.pixels()[0])
    assert grid == first.grid


SIZES = st.tuples(st.integers(32, 700), st.integers(32, 700))
RULES: dict[str, VideoRules] = {}


@given(size=SIZES, pairs=st.integers(1, 6), most=st.integers(1, 400), least=st.sampled_from([None, 20000]))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_the_processors(
    tmp_path_factory: Any, name: str, size: tuple[int, int], pairs: int, most: int, least: int | None
) -> None:
    """Whatever the limits, the grid that is counted is the one that the video processor makes."""
    if name not in RULES:
        folder = open_base(Recipe(model_name_or_path=str(family_folder(name, tmp_path_factory.mktemp("f") / name))))
        recipe = Recipe(model_name_or_path="m")
        RULES[name] = VideoRules(folder, load_processor(folder, pixel_limits(folder, recipe)), recipe)
    rules, pixels = RULES[name], 1024 * most
    rules.recipe = Recipe(
        model_name_or_path="m", video_max_pixels=pixels, video_min_pixels=min(least, pixels) if least else None
    )
    if max(size) > 200 * min(size):
        return
    (width, height), grid = rules.fit(*size, 2 * pairs)
    made = rules.processor.video_processor(
        videos=[np.zeros((2 * pairs, height, width, 3), np.uint8)], return_tensors="pt", **rules.arguments
    )
    assert tuple(made["video_grid_thw"][0].tolist()) == grid
    whole = made["pixel_values_videos"].shape[0]
    assert whole == np.prod(grid)
    if least is None and most >= 25:  # enough for a row and a column of any of these shapes
        assert grid[1] * grid[2] * rules.limits.patch**2 <= pixels


@pytest.mark.parametrize("family", ["qwen2_vl"], indirect=True)
def test_a_folder_without_a_video_processor_uses_its_images(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    """As transformers does with Qwen2-VL's and Qwen2.5-VL's folders on the hub."""
    (tmp_path / "qwen2_vl/video_preprocessor_config.json").unlink()
    data = load(recipe_of())
    assert data.bank.videos is not None
    assert (data.bank.videos.limits.min_pixels, data.bank.videos.limits.max_pixels) == (3136, 50176)


def said(recipe: Recipe) -> tuple[bool, str]:
    out = StringIO()
    return check_recipe(recipe, Report(Console(file=out, width=200, soft_wrap=True))), out.getvalue()


@pytest.mark.parametrize("family", ["qwen3_vl"], indirect=True)
class TestOneFamily:
    def test_check_reads_headers_alone(self, recipe_of: MakeRecipe, dataset: Path) -> None:
        write_video(dataset / "short.mp4", codec="libx264")
        write_dataset(dataset, [chat("<video>what?", "red", ["short.mp4"]), chat("hello", "hi", [])])
        before = said(recipe_of())
        assert before[0]
        assert "1 video, 4 to 4 frames each of up to 4,096 pixels, 2 a second and 128 at most" in before[1]
        spoil(dataset / "short.mp4")
        assert said(recipe_of()) == before
        with pytest.raises(FinetuneError, match=r"short\.mp4: the file is not a readable video"):
            train(recipe_of())

    def test_what_check_shows(self, recipe_of: MakeRecipe) -> None:
        fine, text = said(recipe_of(val_size=1, eval_dataset=None))
        assert fine
        assert "2 images, " in text
        assert "3 videos, " in text
        assert "no image or video of theirs is trained on" in text
        assert "<0.3 seconds>" in text
        assert "video tokens)" in text

    def test_long_rows(self, recipe_of: MakeRecipe, dataset: Path) -> None:
        write_video(dataset / "large.mp4", frames=40, size=(320, 256))
        write_dataset(dataset, [chat("<video>what?", "red", ["large.mp4"]), chat("hi", "ho", [])])
        whole = load(recipe_of())
        length = max(map(len, whole.rows))
        with pytest.raises(FinetuneError, match="raise cutoff_len, lower video_max_pixels"):
            load(recipe_of(cutoff_len=length - 1, cutoff_policy="error"))
        out = StringIO()
        dropped = load_training_data(recipe_of(cutoff_len=length - 1), Console(file=out, soft_wrap=True))
        assert [row.source for row in dropped.rows] == ["shapes.json, row 2"]
        assert "a smaller video_max_pixels or video_maxlen" in out.getvalue()
        shrunk = load(recipe_of(cutoff_len=length // 2, cutoff_policy="shrink"))
        assert length // 4 < len(shrunk.rows[0]) <= length // 2
        tokens = whole.bank.tokens(whole.rows[0].images[0])
        least = load(recipe_of(cutoff_len=length - tokens + 4, cutoff_policy="shrink"))
        assert len(least.rows[0]) == length - tokens + 4  # four pairs of frames, a token each
        rows = load_rows("shapes", recipe_of()).rows
        prove_encoding(rows[:1], shrunk.rows[:1], shrunk.processor, shrunk.bank)
        assert shrunk.bank.clips[shrunk.rows[0].images[0]].pixels()[1] == shrunk.bank.grids[shrunk.rows[0].images[0]]

    def test_rows_that_share_a_frame_stay_together(self, recipe_of: MakeRecipe, dataset: Path) -> None:
        frames = [f"frames/{n:03}.png" for n in range(5)]
        write_dataset(dataset, [
            chat("<video>one?", "a", [frames[:3]]), chat("<video>two?", "b", [frames[2:]]),
            chat("<image>three?", "c", [], ["frames/004.png"]), chat("<video>four?", "d", ["short.mp4"]),
            chat("<video>five?", "e", ["short.mp4"]), chat("<image>six?", "f", [], ["images/0.png"]),
        ])  # fmt: skip
        for seed in range(6):
            data = load(recipe_of(val_size=1, eval_dataset=None, seed=seed))
            held = {int(row.source[-1]) for row in data.validation}
            assert held in ({1, 2, 3}, {4, 5}, {6})

    def test_fewer_and_larger_frames(self, recipe_of: MakeRecipe, dataset: Path) -> None:
        write_dataset(dataset, [chat("<video>what?", "red", ["short.mp4"])])

        def taken(**keys: Any) -> tuple[tuple[int, ...], tuple[int, int, int]]:
            (clip,) = load(recipe_of(**keys)).bank.clips.values()
            return clip.indices, clip.grid

        assert taken() == ((0, 6, 12, 19), (2, 4, 4))
        assert taken(video_fps=1.5) == ((0, 9, 19, 19), (2, 4, 4))
        assert taken(video_fps=0.1) == ((0, 0), (1, 4, 4))
        assert taken(video_maxlen=3) == ((0, 9, 19, 19), (2, 4, 4))
        assert taken(video_fps=100)[0] == tuple(range(20))
        assert taken(video_min_pixels=12000)[1] == (2, 6, 8)
        assert taken(video_max_pixels=1024)[1] == (2, 2, 2)

    def test_memory_counts_all_frames(self, recipe_of: MakeRecipe, dataset: Path) -> None:
        write_dataset(dataset, [chat("<video>what?", "red", ["long.mkv"])])
        data = load(recipe_of())
        heavy = heaviest_load(data.rows, recipe_of(), data.bank)
        light = heaviest_load(data.rows, recipe_of(), data.bank, frame_max_pixels=1024)
        (grid,) = data.bank.grids
        assert (heavy.patches, heavy.image_tokens) == (np.prod(grid), np.prod(grid) // 4)
        assert light.image_tokens == grid[0]
        assert heavy.tokens - light.tokens == heavy.image_tokens - light.image_tokens

    def test_an_endpoint_is_not_asked(self, recipe_of: MakeRecipe) -> None:
        with pytest.raises(FinetuneError, match=r"row 1: rows with videos are not sent .* without --endpoint"):
            evaluate(recipe_of(), endpoint="http://127.0.0.1:9/v1")
