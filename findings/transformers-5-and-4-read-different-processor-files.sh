#!/usr/bin/env bash
# Expected: a model folder has one set of image limits. If it holds both preprocessor_config.json (the older name)
# and processor_config.json, every version of transformers prefers the same one, or says that they differ.
#
# What happens: transformers 5 takes the image processor's settings from processor_config.json, transformers 4.57
# from preprocessor_config.json, and neither says a word about the other file. A folder gets both when version 5
# saves its processor (into processor_config.json alone) beside the older file of a model from a hub.
#
# Versions: transformers 5.24.0 and 4.57.6, Pillow 13.0.0, no torch.
#
# Why it matters: the limits decide how many tokens a picture takes. Here one folder gives 768 tokens in one version
# and 234 in the other. Training and serving usually run in different environments, as servers pin transformers, and
# Ollama's converter reads the older file too: a model that was tuned on small pictures is served with large ones or
# the other way round, and no error says so. Whoever changes the limits has to change them in both files.
#
# Source: transformers 5.24.0, image_processing_base.py (the processor's file is fetched beside the image
# processor's own and wins); transformers 4.57.6, image_processing_base.py (reads preprocessor_config.json alone).
#
# Output seen (one picture of 1024x768 pixels):
#   preprocessor_config.json allows 262144 pixels, processor_config.json allows 1048576
#   transformers 5.24.0: 768 tokens
#   transformers 4.57.6: 234 tokens
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/tokens.py" <<'PY'
import json

from PIL import Image
from transformers import AutoImageProcessor

common = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "image_processor_type": "Qwen2VLImageProcessor"}
files = {
    "config.json": {"model_type": "qwen3_vl"},
    "preprocessor_config.json": {**common, "min_pixels": 4096, "max_pixels": 262144},
    "processor_config.json": {"image_processor": {**common, "size": {"shortest_edge": 4096, "longest_edge": 1048576}}},
}
for name, content in files.items():
    with open(name, "w") as file:
        json.dump(content, file)
processor = AutoImageProcessor.from_pretrained(".")
_, height, width = processor(images=Image.new("RGB", (1024, 768)), return_tensors="np")["image_grid_thw"][0]
print(height * width // 4)
PY
tokens=()
for version in 5.24.0 4.57.6; do
  python3 -m venv --clear "$work/venv"
  "$work/venv/bin/pip" install -qq "transformers==$version" pillow==13.0.0
  tokens+=("$(cd "$work" && TRANSFORMERS_VERBOSITY=error venv/bin/python -W ignore tokens.py)")
done
if [[ "${tokens[*]}" != "768 234" ]]; then
  echo "The behaviour has changed: the folder now gives ${tokens[0]} tokens in 5.24.0 and ${tokens[1]} in 4.57.6." >&2
  exit 1
fi
echo "preprocessor_config.json allows 262144 pixels, processor_config.json allows 1048576"
echo "transformers 5.24.0: ${tokens[0]} tokens"
echo "transformers 4.57.6: ${tokens[1]} tokens"
