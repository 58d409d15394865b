"""Where rows come from besides json: parquet, several files of a split, several datasets mixed, images by URL."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet
import pytest

from finetune.data import remote_images
from finetune.data.datasets import load_rows
from finetune.errors import FinetuneError
from finetune.media.image_files import image_size
from finetune.recipe.schema import Recipe
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]


def answers(recipe: Recipe, names: str) -> str:
    return " ".join(row.messages[-1]["content"][0]["text"] for row in load_rows(names, recipe).rows)


def test_parquet_with_images_inside(recipe: MakeRecipe, dataset: Path) -> None:
    pixels = (dataset / "images/0.png").read_bytes()
    records = [
        ask("what?", "red", 0) | {"images": [{"bytes": pixels, "path": None}]},
        ask("and this?", "red", 1) | {"images": [{"bytes": None, "path": "images/1.png"}]},
    ]
    for record in records:
        record["conversations"][0]["value"] = "<image>what?"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), dataset / "rows.parquet")
    rows = load_rows(str(dataset / "rows.parquet"), recipe()).rows
    assert [image_size(row.images[0]) for row in rows] == [(64, 64), (96, 64)]
    (dataset / "rows.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(FinetuneError, match=r"rows\.parquet is not a readable parquet file"):
        load_rows(str(dataset / "rows.parquet"), recipe())


def test_a_folder_of_caption_images_in_parquet(recipe: MakeRecipe, tmp_path: Path, dataset: Path) -> None:
    folder = tmp_path / "hub/data"
    folder.mkdir(parents=True)
    image = {"bytes": (dataset / "images/2.png").read_bytes(), "path": "2.png"}
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        table = pyarrow.Table.from_pylist([{"image": image, "text": name}])
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    assert answers(recipe(), str(tmp_path / "hub")) == "train-00000-of-00002 train-00001-of-00002"


# What datasets 4.0's interleave_datasets makes of 3, 7 and 5 rows with seed 42.
TURNS = "a0 b0 c0 a1 b1 c1 a2 b2 c2"
MIXED = {
    ("concat", None): "a0 a1 a2 b0 b1 b2 b3 b4 b5 b6 c0 c1 c2 c3 c4",
    ("interleave_under", None): TURNS,
    ("interleave_over", None): TURNS + " a0 b3 c3 a1 b4 c4 a2 b5 c0 a0 b6 c1",
    ("interleave_under", "0.2,0.5,0.3"): "c0 b0 c1 b1 a0 c2 c3 c4",
    ("interleave_over", "0.2,0.5,0.3"): "c0 b0 c1 b1 a0 c2 c3 c4 a1 b2 b3 c0 b4 c1 b5 b6 b0 a2",
}


@pytest.mark.parametrize(("strategy", "shares"), MIXED)
def test_datasets_are_mixed_as_llama_factory_mixes(
    recipe: MakeRecipe, dataset: Path, strategy: str, shares: str | None
) -> None:
    for name, size in zip("abc", (3, 7, 5), strict=True):
        write_dataset(dataset, [ask("?", f"{name}{n}", 0) for n in range(size)], name=name)
    mixed = recipe(mix_strategy=strategy, interleave_probs=shares)
    assert answers(mixed, "a,b,c") == MIXED[strategy, shares]
    if shares:
        with pytest.raises(FinetuneError, match="interleave_probs has 3 values for 2 datasets"):
            load_rows("a,b", mixed)


@pytest.mark.parametrize("shares", ["0.5,0.6", "1.5,-0.5", "a,b", ""])
def test_shares_that_are_none_are_refused(recipe: MakeRecipe, shares: str) -> None:
    with pytest.raises(FinetuneError, match="are not positive shares that sum to 1"):
        recipe(mix_strategy="interleave_under", interleave_probs=shares)
    with pytest.raises(FinetuneError, match="interleave_probs needs mix_strategy"):
        recipe(interleave_probs="0.5,0.5")


@pytest.fixture
def site(dataset: Path) -> Iterator[str]:
    """A web server of the dataset's folder; /moved redirects to a file of this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", "file:///etc/hostname")
                self.end_headers()
            else:
                super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(dataset)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_image_urls_are_fetched_once_where_allowed(
    recipe: MakeRecipe, dataset: Path, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = ask("what?", "red", 1) | {"images": [f"{site}/images/1.png"]}
    write_dataset(dataset, [ask("what?", "red", 0), row])
    with pytest.raises(FinetuneError, match=r"row 2: the image http://.* is a URL; set allow_image_urls: true"):
        load_rows("shapes", recipe())
    rows = load_rows("shapes", recipe(allow_image_urls=True)).rows
    assert image_size(rows[1].images[0]) == (96, 64)
    (dataset / "images/1.png").unlink()
    assert load_rows("shapes", recipe(allow_image_urls=True)).rows[1].images == rows[1].images


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/gone.png", "cannot be fetched: File not found"),
        ("/moved", "cannot be fetched: .*(not allowed|unknown url type|unsupported protocol)"),
        ("/shapes.json", "has over 0 MiB"),
    ],
)
def test_an_image_that_cannot_be_had_is_named(
    recipe: MakeRecipe, dataset: Path, site: str, path: str, complaint: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_images, "MAX_BYTES", 200)
    write_dataset(dataset, [ask("what?", "red", 1) | {"images": [site + path]}] * 2)
    with pytest.raises(FinetuneError, match=f"shapes.json, row 1: the image {site}{path} {complaint}"):
        load_rows("shapes", recipe(allow_image_urls=True))
    assert not list((tmp_path / "cache/lensmith/images").rglob("*.*"))


def test_an_entry_comes_before_a_folder_of_its_name(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are dataset_info.json's first; a path with a folder in it never is one."""
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(load_rows("shapes", recipe()).rows) == 24
    with pytest.raises(FinetuneError, match="The dataset folder shapes has no"):
        load_rows("./shapes", recipe())
