#!/usr/bin/env bash
# Expected: a photo taken with the phone held upright reaches the model upright, whichever of the usual libraries opens
# the file.
#
# What happens: phones store the pixels as the sensor lies and note in the file by how much to turn them. Transformers'
# load_image and the Image column of datasets turn them, and so does vLLM (0.32.0, by its source). qwen-vl-utils, whose
# process_vision_info is in the instructions of the Qwen-VL models, and LMDeploy's loader do not: the picture lies on
# its side, width and height swapped, without a word. A picture that Pillow opened and process_vision_info is
# given lies on its side as well.
#
# Versions: qwen-vl-utils 0.0.14, LMDeploy 0.18.0, transformers 4.57.6, datasets 5.0.1, torch 2.12.1, Pillow 13.0.0.
#
# Why it matters: receipts, forms and meters are photographed with phones, and letters on their side are read badly.
# Training with one of the libraries and serving with another of them shows the model two different pictures, with
# another number of tokens for each side, and boxes that were drawn on the upright picture are all in the wrong
# place in the other. Screenshots, scans and the images of public benchmarks have no such note, so tests do not show it.
# Apply ImageOps.exif_transpose and save the pixels once, before anything else.
#
# Source: qwen-vl-utils 0.0.14, vision_process.py (fetch_image) and LMDeploy 0.18.0, vl/media/image.py (both open and
# convert); transformers 4.57.6, image_utils.py, and datasets 5.0.1, features/image.py (both call exif_transpose).
#
# Output seen (a photo of 448x672, whose upper edge is red):
#   transformers load_image     448x672, the red edge is at the top
#   datasets Image              448x672, the red edge is at the top
#   qwen-vl-utils, path         672x448, the red edge is at the left
#   qwen-vl-utils, PIL image    672x448, the red edge is at the left
#   LMDeploy, base64            672x448, the red edge is at the left
#   warnings: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.12.1 torchvision==0.27.1 transformers==4.57.6 datasets==5.0.1 \
  qwen-vl-utils==0.0.14 pillow==13.0.0 pydantic==2.14.4 mmengine-lite==0.10.7 psutil==7.2.2 pybase64==1.5.1 \
  shortuuid==1.0.13
"$work/venv/bin/pip" install -qq --no-deps lmdeploy==0.18.0
cd "$work"
TRANSFORMERS_VERBOSITY=warning "$work/venv/bin/python" - <<'PY'
import base64
import logging
import sys
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import datasets
    import transformers.image_utils
    from lmdeploy.vl.utils import load_image
    from PIL import Image
    from qwen_vl_utils import process_vision_info

ORIENTATION = 0x0112  # the tag of Exif; 6 says: turn by 90 degrees clockwise to show
said = []


class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


def describe(image):
    image = image.convert("RGB")
    width, height = image.size
    edges = {
        "top": (width // 2, 5),
        "bottom": (width // 2, height - 6),
        "left": (5, height // 2),
        "right": (width - 6, height // 2),
    }
    red = [edge for edge, point in edges.items() if image.getpixel(point)[1] < 128]
    return f"{width}x{height}, the red edge is at the {' and '.join(red)}"


def process(image):
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}]
    return process_vision_info(chat)[0][0]


upright = Image.new("RGB", (448, 672), "white")
upright.paste("red", (0, 0, 448, 100))
exif = Image.Exif()
exif[ORIENTATION] = 6
upright.transpose(Image.Transpose.ROTATE_90).save("photo.jpg", exif=exif)
with open("photo.jpg", "rb") as file:
    url = "data:image/jpeg;base64," + base64.b64encode(file.read()).decode()

for name in (None, "transformers", "datasets", "lmdeploy", "qwen_vl_utils"):
    logging.getLogger(name).addHandler(Listener(level="WARNING"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    column = datasets.Dataset.from_dict({"image": ["photo.jpg"]}).cast_column("image", datasets.Image())
    seen = {
        "transformers load_image": describe(transformers.image_utils.load_image("photo.jpg")),
        "datasets Image": describe(column[0]["image"]),
        "qwen-vl-utils, path": describe(process("photo.jpg")),
        "qwen-vl-utils, PIL image": describe(process(Image.open("photo.jpg"))),
        "LMDeploy, base64": describe(load_image(url)),
    }
said += [str(warning.message) for warning in caught]
turned, lying = "448x672, the red edge is at the top", "672x448, the red edge is at the left"
if list(seen.values()) != [turned, turned, lying, lying, lying] or said:
    sys.exit(f"The behaviour has changed: the picture is now {seen}, with the warnings {said}.")
for library, picture in seen.items():
    print(f"{library:<27} {picture}")
print(f"warnings: {len(said)}")
PY
