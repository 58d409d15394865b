#!/usr/bin/env bash
# Expected: transformers 4.57 either understands a config.json that transformers 5 wrote or refuses it. At the least
# it warns about a setting that it does not know.
#
# What happens: version 5 writes the base of the rotary position embedding as rope_parameters.rope_theta and no
# longer as rope_theta. Version 4.57 keeps the unknown key as an attribute that nobody reads, and takes its own
# default, 10,000. No message, nothing missing among the weights. A scaling rule (llama3, linear, yarn) in the same
# dictionary is dropped as well: rope_scaling is None.
#
# Versions: written by transformers 5.24.0, read by transformers 4.57.6; no torch. LLaVA, InternVL, SmolVLM and
# plain Llama, Qwen3.
#
# Why it matters: training with version 5 and serving with a stack that pins version 4 is ordinary. The fine-tuned
# model loads and answers, with rotary angles that it was not trained with. Nothing points to the config. Writing
# rope_theta and rope_scaling into the config beside rope_parameters serves both versions.
#
# Source: transformers 5.24.0, modeling_rope_utils.py (RopeParameters); transformers 4.57.6, modeling_rope_utils.py
# and the configurations of the models (config.rope_theta and config.rope_scaling only).
#
# Output seen (what each version reads from one file):
#   llama              5.24.0: theta 500000, llama3       4.57.6: theta 10000, scaling None
#   qwen3              5.24.0: theta 1000000, default     4.57.6: theta 10000, scaling None
#   llava              5.24.0: theta 500000, default      4.57.6: theta 10000, scaling None
#   internvl           5.24.0: theta 1000000, default     4.57.6: theta 10000, scaling None
#   smolvlm            5.24.0: theta 273768, default      4.57.6: theta 10000, scaling None
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 5.24.0 4.57.6; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install -qq "transformers==$version"
done
cd "$work"
export TRANSFORMERS_VERBOSITY=error
5.24.0/bin/python -W ignore - 2>/dev/null <<'PY'
import transformers as t

llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rope(theta, **more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


scaled = rope(500000.0, **llama3, original_max_position_embeddings=8192)
configs = {
    "llama": t.LlamaConfig(max_position_embeddings=131072, **scaled),
    "qwen3": t.Qwen3Config(**rope(1000000.0)),
    "llava": t.LlavaConfig(text_config=t.LlamaConfig(**rope(500000.0)).to_dict()),
    "internvl": t.InternVLConfig(text_config=t.Qwen3Config(**rope(1000000.0)).to_dict()),
    "smolvlm": t.SmolVLMConfig(text_config=t.LlamaConfig(**rope(273768.0)).to_dict()),
}
for name, config in configs.items():
    config.save_pretrained(f"models/{name}")
PY
cat >read.py <<'PY'
import sys

from transformers import AutoConfig

text = AutoConfig.from_pretrained(f"models/{sys.argv[1]}").get_text_config()
if hasattr(text, "rope_theta"):
    print(f"theta {text.rope_theta:.0f}, scaling {text.rope_scaling}")
else:
    print(f"theta {text.rope_parameters['rope_theta']:.0f}, {text.rope_parameters['rope_type']}")
PY
for name in llama qwen3 llava internvl smolvlm; do
  new=$(5.24.0/bin/python -W ignore read.py "$name" 2>/dev/null)
  old=$(4.57.6/bin/python -W ignore read.py "$name" 2>/dev/null)
  if [[ "$old" != "theta 10000, scaling None" || "$new" == "theta 10000,"* ]]; then
    echo "The behaviour has changed: $name is read as '$new' by 5.24.0 and as '$old' by 4.57.6." >&2
    exit 1
  fi
  printf '%-18s 5.24.0: %-26s 4.57.6: %s\n' "$name" "$new" "$old"
done
