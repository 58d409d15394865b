"""Video files and rows that are broken, hostile or unusual; what their headers say."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from finetune.data.datasets import load_rows
from finetune.data.formats import Row
from finetune.data.row_media import Video
from finetune.errors import FinetuneError
from finetune.media.video_files import Header, read_frames, read_header
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from tests.support.finetune.shapes_data import write_dataset
from tests.support.finetune.video_data import decoded, spoil, turn, write_frames, write_video

MakeRecipe = Callable[..., Recipe]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mpeg4"),
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.ts", "mpeg4"),
    ],
)
def test_a_header_says_what_is_decoded(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, frames=12, fps=4, codec=codec)
    header = read_header(path)
    images = decoded(path)
    assert header == Header(64, 48, len(images), 4.0)
    found = list(read_frames(path, header, [0, 5, 11]))
    assert [np.array_equal(image, images[at]) for image, at in zip(found, (0, 5, 11), strict=True)] == [True] * 3


def test_packets_are_counted_where_the_header_is_silent(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=7)
    with av.open(str(path)) as source, (tmp_path / "raw.h264").open("wb"):
        assert source.streams.video[0].frames == 7
    with av.open(str(tmp_path / "raw.m4v"), "w", format="m4v") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in decoded(path):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    header = read_header(tmp_path / "raw.m4v")
    assert (header.frames, header.width, header.height) == (7, 64, 48)
    assert len(list(read_frames(tmp_path / "raw.m4v", header, [0, 6]))) == 2


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_frames_stand_as_a_player_shows_them(tmp_path: Path, turned: int) -> None:
    path = turn(write_video(tmp_path / "a.mp4", frames=2), turned)
    header = read_header(path)
    assert (header.width, header.height) == ((64, 48) if turned == 180 else (48, 64))
    (image,) = read_frames(path, header, [1])
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        assert getattr(frames[1], "rotation", turned) % 360 == turned  # older PyAV does not say
    assert np.array_equal(image, np.rot90(frames[1].to_image(), turned // 90))


def test_a_file_that_is_not_what_its_header_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=12)
    header = read_header(path)
    assert len(list(read_frames(path, Header(64, 48, 13, 10.0), [0, 12]))) == 2  # the last stands in
    with pytest.raises(ValueError, match="says 40 frames, but only 12 can be decoded"):
        list(read_frames(path, Header(64, 48, 40, 10.0), [0, 39]))
    with pytest.raises(ValueError, match="a frame has 64x48 pixels, but the header said 32x48"):
        list(read_frames(path, Header(32, 48, 12, 10.0), [0]))
    large = write_video(tmp_path / "large.mp4", frames=2, size=(1280, 720))
    with pytest.raises(ValueError, match="not a readable video"):  # no frame is made that much exceeds the header's
        list(read_frames(large, header, [0]))
    with pytest.raises(ValueError, match="not a readable video"):
        list(read_frames(spoil(path), header, [0]))


def test_too_large_or_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="its frames have 64x48 pixels, over 1,000"):
        read_header(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("finetune.media.video_files.MAX_FRAMES", 19)
    with pytest.raises(ValueError, match="it has 20 frames; 1 to 19 can be read"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "the file does not exist"),
        (b"", "not a readable video"),
        (b"no video at all" * 100, "not a readable video"),
        (b"#EXTM3U\n#EXTINF:10,\nother.ts\n#EXT-X-ENDLIST\n", "not a readable video"),
        (b"ffconcat version 1.0\nfile other.ts\n", "not a readable video"),
    ],
)
@pytest.mark.parametrize("name", ["v.mp4", "v.m3u8"])
def test_other_files_are_no_videos(tmp_path: Path, content: bytes | None, complaint: str, name: str) -> None:
    """Playlists would have other files read, or fetched."""
    write_video(tmp_path / "other.ts")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        read_header(tmp_path / name)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="it has no video stream"):
        read_header(tmp_path / "a.mp4")


def turns(question: str, **columns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}], **columns}


def parts(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "red"}]}


def only_row(recipe: Recipe, dataset: Path, record: Any, **entry: Any) -> Row:
    write_dataset(dataset, [record], **entry)
    (row,) = load_rows("shapes", recipe).rows
    return row


KINDS = [{"type": "video"}, {"type": "text", "text": "what "}, {"type": "image"}, {"type": "video"}]


def test_every_format_has_videos(recipe: MakeRecipe, dataset: Path) -> None:
    videos = [Video(dataset / "a.mp4"), Video((dataset / "0.png", dataset / "1.png"))]
    given: dict[str, Any] = {"videos": ["a.mp4", ["0.png", "1.png"]], "images": ["images/0.png"]}
    sharegpt = only_row(recipe(), dataset, turns("<video>what <image><video>", **given))
    alpaca = only_row(
        recipe(), dataset, {"instruction": "<video>what <image><video>", "output": "red", **given}, formatting="alpaca"
    )
    named = turns("<video>what <image><video>", clips=given["videos"], images=given["images"])
    renamed = only_row(recipe(), dataset, named, columns={"videos": "clips"})
    openai = only_row(
        recipe(), dataset,
        parts(
            {"type": "video_url", "video_url": {"url": "a.mp4"}}, {"type": "text", "text": "what "},
            {"type": "image_url", "image_url": {"url": "images/0.png"}}, {"type": "video", "video": ["0.png", "1.png"]},
        ),
        formatting="openai",
    )  # fmt: skip
    for row in (sharegpt, alpaca, renamed, openai):
        assert row.messages[0]["content"] == KINDS
        assert row.videos == videos
        assert row.images == [dataset / "images/0.png"]
    text = only_row(recipe(), dataset, turns("<video>what?", videos=json.dumps(["a.mp4"])))  # as in a csv file
    assert text.videos == videos[:1]


@pytest.mark.parametrize(
    ("record", "formatting", "complaint"),
    [
        (turns("<video><video>q", videos=["a.mp4"]), "sharegpt", "the text has <video> 2 times, the row has 1 video"),
        (turns("<video>q"), "sharegpt", "the text has <video> 1 time, the row has 0 videos"),
        (turns("<video>q", videos=["0.png", "1.png"]), "sharegpt", r"2 videos \(a video's frames are a list in that"),
        (turns("<video>q", videos=[["0.png", 3]]), "sharegpt", "'videos' must be a list of paths, or of lists"),
        (turns("<video>q", videos=[[]]), "sharegpt", "'videos' must be a list of paths, or of lists"),
        (turns("q", videos="[broken"), "sharegpt", "'videos' is not a path or a JSON list"),
        (parts({"type": "text", "text": "<video>"}), "openai", "turn 1: a text part cannot hold <video>"),
        (parts({"type": "video", "video": 3}), "openai", "turn 1: a part must be a text"),
        (parts({"type": "video", "video": "a.mp4"}) | {"videos": ["b.mp4"]}, "openai", "videos are given both in"),
        (turns("<video>q", videos=[["https://x/y.png"]]), "sharegpt", "is a URL; set allow_image_urls: true"),
    ],
)
def test_broken_rows_are_named(recipe: MakeRecipe, dataset: Path, record: Any, formatting: str, complaint: str) -> None:
    with pytest.raises(FinetuneError, match=f"shapes.json, row 1.*{complaint}"):
        only_row(recipe(), dataset, record, formatting=formatting)


def test_an_answer_holds_no_video(recipe: MakeRecipe, dataset: Path) -> None:
    record = turns("<video>q", videos=["a.mp4"])
    record["conversations"][1]["value"] = "<video>"
    with pytest.raises(FinetuneError, match="row 1, turn 2: an answer cannot hold <video>"):
        only_row(recipe(), dataset, record)


def test_frames_may_be_data_uris(recipe: MakeRecipe, dataset: Path) -> None:
    pixels = base64.b64encode(write_frames(dataset / "f", [Image.new("RGB", (64, 64), "red")])[0].read_bytes()).decode()
    write_dataset(dataset, [turns("<video>q", videos=[[f"data:image/png;base64,{pixels}", "f/000.png"]])])
    data = load_training_data(recipe(), Console(quiet=True))
    (clip,) = data.bank.clips.values()
    first, second = clip.frames()
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("video", "complaint"),
    [
        ("gone.mp4", r"the video .*gone\.mp4: the file does not exist"),
        ("images/0.png", r"the video .*0\.png: the file is not a readable video"),
        ("https://example.org/a.mp4", r"the video https://example\.org/a\.mp4.*: it is a URL; save it as a file"),
        ("data:video/mp4;base64,AAAA", "the video data:video/mp4;base64,AAAA.*: it is a data URI; save it as a file"),
        (["images/0.png", "gone.png"], r"the video of 2 frames from .*0\.png: frame 2, .*gone\.png: the file does not"),
        (["images/0.png", "images/1.png"], "frame 2 has 96x64 pixels, the first 64x64; make them equal"),
        (["thin.png"], r"frames of 8x64 pixels; the model needs at least 32x32"),
    ],
)
def test_a_video_that_cannot_be_used_is_named(recipe: MakeRecipe, dataset: Path, video: Any, complaint: str) -> None:
    write_dataset(dataset, [turns("<video>q", videos=[video])])
    Image.new("RGB", (8, 64)).save(dataset / "thin.png")
    with pytest.raises(FinetuneError, match=f"shapes.json, row 1: .*{complaint}"):
        load_training_data(recipe(), Console(quiet=True))


def test_a_frame_that_breaks_later_is_named(recipe: MakeRecipe, dataset: Path) -> None:
    frames = write_frames(dataset / "f", [Image.new("RGB", (640, 480), "red")] * 2)
    frames[1].write_bytes(frames[1].read_bytes()[:200])
    write_dataset(dataset, [turns("<video>q", videos=[["f/000.png", "f/001.png"]])])
    (clip,) = load_training_data(recipe(), Console(quiet=True)).bank.clips.values()
    with pytest.raises(FinetuneError, match=r"The image .*001\.png cannot be decoded"):
        clip.frames()


def test_too_many_pixels_at_once_are_refused(
    recipe: MakeRecipe, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(dataset / "a.mp4", size=(320, 256))
    write_dataset(dataset, [turns("<video>q", videos=["a.mp4"])])
    monkeypatch.setattr("finetune.media.videos.MAX_PIXELS", 4 * 320 * 256 - 1)
    with pytest.raises(FinetuneError, match="4 frames of 320x256 pixels are too many at once; lower video_maxlen"):
        load_training_data(recipe(video_max_pixels=None), Console(quiet=True))
    load_training_data(recipe(video_max_pixels=4096), Console(quiet=True))


def test_limits_that_contradict_are_refused(recipe: MakeRecipe) -> None:
    with pytest.raises(FinetuneError, match="video_min_pixels is more than video_max_pixels"):
        recipe(video_min_pixels=70000)
