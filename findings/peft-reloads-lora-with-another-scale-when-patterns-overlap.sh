#!/usr/bin/env bash
# Expected: an adapter that is saved and loaded again computes what it computed before. alpha_pattern, a dictionary
# from module names to lora_alpha, is in adapter_config.json like everything else.
#
# What happens: PEFT takes the first key that matches a module, and keys match from the end of the name ("down_proj"
# matches every layer's). So the specific key has to stand first, and in memory it does. save_pretrained sorts the
# dictionary. "down_proj" sorts before "layers.1.mlp.down_proj", so after loading the general key wins: the layer
# gets another scale than in training. No error and no warning, and a merge of the loaded adapter bakes the wrong
# scale in.
#
# Versions: peft 0.21.2, torch 2.13.0, transformers 5.24.0 (peft's import needs it).
#
# Why it matters: "this layer weaker, all others as usual" is what the option is for. Validation during training
# sees the right model; the evaluation of the saved adapter, and every server, sees another one. With rank_pattern
# the same swap at least fails by a size mismatch. Keys that cannot match the same module (a negative lookahead, or
# one key per layer) are safe.
#
# Source: peft 0.21.2, config.py (save_pretrained writes the dictionary sorted) and utils/other.py (get_pattern_key
# returns the first match).
#
# Output seen (scale = alpha / rank of each layer; rank 4):
#   trained:  keys ['layers.1.mlp.down_proj', 'down_proj'], scales [4.0, 1.0, 4.0]
#   loaded:   keys ['down_proj', 'layers.1.mlp.down_proj'], scales [4.0, 4.0, 4.0]
#   warnings: 0, same output: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 transformers==5.24.0 peft==0.21.2
cd "$work"
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'PY'
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.ModuleDict({"down_proj": nn.Linear(8, 8)})

    def forward(self, x):
        return x + self.mlp["down_proj"](x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(3)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def base():
    torch.manual_seed(0)
    return Model()


def scales(model):
    return [layer.mlp["down_proj"].scaling["default"] for layer in model.base_model.model.layers]


alphas = {"layers.1.mlp.down_proj": 4, "down_proj": 16}
trained = get_peft_model(base(), LoraConfig(r=4, target_modules=["down_proj"], alpha_pattern=alphas))
for name, weight in trained.named_parameters():
    if "lora_B" in name:
        nn.init.normal_(weight)
x = torch.ones(1, 8)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    trained.save_pretrained("adapter")
    loaded = PeftModel.from_pretrained(base(), "adapter")
said = [str(warning.message) for warning in caught if "peft" in warning.filename]
same = torch.allclose(trained(x), loaded(x))
before, after = scales(trained), scales(loaded)
if before != [4.0, 1.0, 4.0] or after != [4.0, 4.0, 4.0] or said or same:
    sys.exit(f"The behaviour has changed: scales {before} are loaded as {after}, with the warnings {said}.")
print(f"trained:  keys {list(trained.peft_config['default'].alpha_pattern)}, scales {before}")
print(f"loaded:   keys {list(loaded.peft_config['default'].alpha_pattern)}, scales {after}")
print(f"warnings: {len(said)}, same output: {same}")
PY
