#!/usr/bin/env bash
# Expected: a server that takes its sampling defaults from the model's generation_config.json samples at temperature
# 1.0 where the file says 1.0, and greedily where it says "do_sample": false.
#
# What happens in LMDeploy: the file goes through transformers' to_diff_dict(), which leaves out what equals
# transformers' own default. With transformers 4.57 that is 1.0 for the temperature, so the line vanishes and
# LMDeploy's own default of 0.8 takes its place. 0.99 is kept. top_k 50 is lost in the same way and comes back only
# because LMDeploy's default happens to be 50, too. "do_sample": false is dropped in any case: such a model samples
# at 0.8. Transformers 5, which has no such defaults, keeps the 1.0 (seen with 5.17, not part of this script).
#
# Versions: LMDeploy 0.18.0, transformers 4.57.6, torch 2.13.0.
#
# Why it matters: temperature 1.0 is the natural setting for a model's own distribution, and whoever writes 1.0 or
# do_sample false into the folder means it. Evaluation through the server and through transformers then differ, and
# the same LMDeploy gives other answers after a pip upgrade of transformers. Only a request that names its
# temperature is safe.
#
# Source: LMDeploy 0.18.0, serve/core/generation_config.py (_load_hf_generation_config, build_generation_config).
#
# Output seen (generation_config.json -> what a request without sampling options gets):
#   {"temperature": 1.0, "top_p": 0.9}  ->  temperature 0.8, top_p 0.9, do_sample True
#   {"temperature": 0.99}               ->  temperature 0.99, top_p 1.0, do_sample True
#   {"do_sample": false}                ->  temperature 0.8, top_p 1.0, do_sample True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 transformers==4.57.6 pydantic==2.14.4 mmengine-lite==0.10.7 \
  psutil==7.2.2 pillow==13.0.0 pybase64==1.5.1 shortuuid==1.0.13
"$work/venv/bin/pip" install -qq --no-deps lmdeploy==0.18.0
cd "$work"
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PY'
import json
import logging
import sys

from lmdeploy.serve.core.generation_config import build_generation_config, resolve_default_gen_config
from lmdeploy.serve.openai.protocol import ChatCompletionRequest

logging.getLogger("lmdeploy").setLevel("WARNING")
request = ChatCompletionRequest(model="m", messages=[])
cases = [
    ({"temperature": 1.0, "top_p": 0.9}, (0.8, 0.9, True)),
    ({"temperature": 0.99}, (0.99, 1.0, True)),
    ({"do_sample": False}, (0.8, 1.0, True)),
]
for content, expected in cases:
    with open("generation_config.json", "w") as file:
        json.dump(content, file)
    used = build_generation_config(request, resolve_default_gen_config("auto", ".", False))
    seen = (used.temperature, used.top_p, used.do_sample)
    if seen != expected:
        sys.exit(f"The behaviour has changed: {content} now gives temperature, top_p and do_sample {seen}.")
    print(f"{json.dumps(content):<35} ->  temperature {seen[0]}, top_p {seen[1]}, do_sample {seen[2]}")
PY
