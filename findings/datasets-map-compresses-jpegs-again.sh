#!/usr/bin/env bash
# Expected: `dataset.map(lambda row: {**row, "prompt": ...})` adds a column and leaves the images as they were,
# since nobody touched a pixel. Returning the same row with or without unpacking it is the same thing.
#
# What happens: an image column of JPEG bytes (the usual form in a Parquet file) is decoded when the row is
# unpacked, and the decoded picture that comes back is encoded again: as JPEG, with Pillow's default quality 75 and
# halved colour resolution, whatever the original had. Returning only the new column, or the row object itself
# without unpacking, keeps the bytes. So do filter() and map() in streaming mode. Dataset.from_list(rows) and
# from_generator(rows) lose quality in the same way.
#
# Versions: datasets 5.2.0, Pillow 13.0.0, NumPy 2.3.5, Python 3.11.
#
# Why it matters: fine-tuning data for reading documents and charts is full of thin coloured strokes. Here the red
# letters of a page change by up to 189 of 255 levels, and the picture shrinks to about a quarter of its bytes, in
# one step that "only added a prompt". The model is then served with the original pictures. PNG images come back
# lossless, so a test with PNGs does not show it.
#
# Source: datasets 5.2.0, features/image.py: encode_pil_image and image_to_bytes (the format of the opened image is
# kept, its quality is not).
#
# Output seen:
#   map returns the new column only    50033 bytes, pixels differ by at most 0
#   map returns the row itself         50033 bytes, pixels differ by at most 0
#   map returns {**row, new column}    12695 bytes, pixels differ by at most 189
#   Dataset.from_list of the rows      12695 bytes, pixels differ by at most 189
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq datasets==5.2.0 pillow==13.0.0 numpy==2.3.5
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import io
import sys

import datasets
import numpy
from PIL import Image as Pillow
from PIL import ImageDraw

datasets.disable_progress_bars()
page = Pillow.new("RGB", (256, 128), "white")
pen = ImageDraw.Draw(page)
for line in range(8):
    words = f"Invoice {line} total 1,234.5{line} due 2024-01-3{line}"
    pen.text((4, 4 + 15 * line), words, fill=["red", "blue"][line % 2])
buffer = io.BytesIO()
page.save(buffer, "JPEG", quality=97, subsampling=0)
original = buffer.getvalue()
features = datasets.Features({"image": datasets.Image()})
data = datasets.Dataset.from_dict({"image": [{"bytes": original, "path": None}]}, features=features)


def with_prompt(row):
    row["prompt"] = "Read."
    return row


def stored(dataset):
    raw = dataset.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    pixels = [numpy.asarray(Pillow.open(io.BytesIO(item))).astype(int) for item in (original, raw)]
    return len(raw), int(abs(pixels[0] - pixels[1]).max())


seen = {
    "map returns the new column only": stored(data.map(lambda row: {"prompt": "Read."})),
    "map returns the row itself": stored(data.map(with_prompt)),
    "map returns {**row, new column}": stored(data.map(lambda row: {**row, "prompt": "Read."})),
    "Dataset.from_list of the rows": stored(datasets.Dataset.from_list(list(data))),
}
untouched = (len(original), 0)
first, second, third, fourth = seen.values()
if not (first == second == untouched and third == fourth and third[1] > 50 and third[0] < len(original) / 2):
    sys.exit(f"The behaviour has changed: bytes and greatest pixel difference are now {seen}.")
for name, (size, difference) in seen.items():
    print(f"{name:<34} {size} bytes, pixels differ by at most {difference}")
PY
