#!/usr/bin/env bash
# Expected: processor(images="cut.png") and processor(images=Image.open("cut.png")) give the same pixels; the path
# is a convenience.
#
# What happens with a picture that has transparent parts: the opened image is laid on white, while the path (or a
# URL, or base64, also inside apply_chat_template) shows the colour that is stored under the transparency, which
# nobody is meant to see. In most cut-outs and logos that colour is black. The two ways convert to RGB at different
# places: the image processor's own conversion respects the alpha channel, the loader of paths throws it away
# before.
#
# Versions: transformers 5.24.0 (the PIL backend of the Qwen2-VL image processor, which Qwen2.5-VL and Qwen3-VL
# use), Pillow 13.0.0, no torch. Since 5.21; before, both ways showed the hidden colour.
#
# Why it matters: training code usually opens files (datasets decodes them), serving code passes URLs or base64.
# Logos, stickers, charts and screenshots with transparency are then seen on white in training and on black in
# serving: black letters on a transparent ground become invisible. An upgrade across 5.21 changes one of the two
# sides.
#
# Source: transformers 5.24.0, image_transforms.py (convert_to_rgb lays on white) and image_utils.py (load_image
# ends with convert("RGB")).
#
# Output seen (an opaque black square on a transparent ground that is stored as black; mean of all pixels, 0 to 255):
#   opened file: mean 191, a quarter is black and the rest white
#   path:        mean 0, black on black
#   base64:      mean 0, black on black
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq transformers==5.24.0 pillow==13.0.0
cd "$work"
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PY'
import base64
import sys

from PIL import Image
from transformers import Qwen2VLImageProcessorPil

sign = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
sign.paste((0, 0, 0, 255), (0, 0, 28, 28))
sign.save("cut.png")
with open("cut.png", "rb") as file:
    encoded = base64.b64encode(file.read()).decode()
processor = Qwen2VLImageProcessorPil(do_resize=False, do_rescale=False, do_normalize=False)
forms = {"opened file": Image.open("cut.png"), "path": "cut.png", "base64": encoded}
means = {}
for form, image in forms.items():
    means[form] = float(processor(images=image, return_tensors="np")["pixel_values"].mean())
if [round(mean) for mean in means.values()] != [191, 0, 0]:
    sys.exit(f"The behaviour has changed: the mean values are now {means}.")
notes = ("a quarter is black and the rest white", "black on black", "black on black")
for (form, mean), note in zip(means.items(), notes):
    print(f"{form + ':':<12} mean {mean:.0f}, {note}")
PY
