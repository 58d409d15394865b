#!/usr/bin/env bash
# Expected: Image.open(path).convert("RGB") shows the same picture with 8 bits a channel. Where the file has 16 bits of
# grey (X-rays, depth maps, microscopes, many scanners) each value is divided by 257, as viewers and browsers do.
#
# What happens: a 16-bit grey PNG or TIFF opens with the mode "I;16", and convert() to "RGB" or "L" cuts every value at
# 255 in place of scaling it. All but the darkest 0.4 % of the range becomes pure white, without a warning. So does
# whatever stands on it: transformers' load_image() ends with this convert(), and a Dataset's Image column hands out
# the "I;16" picture, which processors convert in the same way. A 16-bit RGB file is scaled, so a test with a colour
# picture does not show it.
#
# Versions: Pillow 13.0.0, transformers 5.24.0, datasets 5.2.0, NumPy 2.3.5.
#
# Why it matters: such a data set trains without an error on white pictures, and the model learns what is most likely
# without looking. Served, it answers fluently about a picture that it has not seen. Scale before:
# Image.fromarray((numpy.asarray(picture) / 257).astype("uint8")).
#
# Source: Pillow 13.0.0, src/libImaging/Convert.c (I;16 to L clips); transformers 5.24.0, image_utils.py, load_image.
#
# Output seen (a ramp from black to white; a scaled one has 256 levels, mean 127.5, and 0.2 % of it white):
#   16-bit grey, Pillow's convert                  mean 254.5, 99.6 % white, 17 levels
#   16-bit grey, transformers.load_image           mean 254.5, 99.6 % white, 17 levels
#   16-bit grey, a Dataset's Image, then convert   mean 254.5, 99.6 % white, 17 levels
#   the same values as 8 bits, Pillow's convert    mean 127.5, 0.2 % white, 256 levels
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq pillow==13.0.0 transformers==5.24.0 datasets==5.2.0 numpy==2.3.5
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PY'
import sys

import datasets
import numpy
from PIL import Image
from transformers.image_utils import load_image

ramp = numpy.linspace(0, 65535, 4096).round().astype("uint16").reshape(64, 64)
Image.fromarray(ramp).save("deep.png")
Image.fromarray((ramp / 257).round().astype("uint8")).save("plain.png")
column = datasets.Dataset.from_dict({"image": ["deep.png"]}).cast_column("image", datasets.Image())
pictures = {
    "16-bit grey, Pillow's convert": Image.open("deep.png").convert("RGB"),
    "16-bit grey, transformers.load_image": load_image("deep.png"),
    "16-bit grey, a Dataset's Image, then convert": column[0]["image"].convert("RGB"),
    "the same values as 8 bits, Pillow's convert": Image.open("plain.png").convert("RGB"),
}
seen = {}
for name, picture in pictures.items():
    grey = numpy.asarray(picture)[:, :, 0]
    seen[name] = float(grey.mean()), float((grey == 255).mean() * 100), len(numpy.unique(grey))
*deep, plain = seen.values()
if not (all(white > 99 for _, white, _ in deep) and plain[1] < 1):
    sys.exit(f"The behaviour has changed: mean, per cent white and levels are now {seen}.")
for name, (mean, white, levels) in seen.items():
    print(f"{name:<46} mean {mean:.1f}, {white:.1f} % white, {levels} levels")
PY
