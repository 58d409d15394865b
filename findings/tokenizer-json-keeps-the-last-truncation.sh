#!/usr/bin/env bash
# Expected: tokenizer(text, truncation=True, max_length=N, padding=...) concerns that call. save_pretrained writes
# the vocabulary, the merges and the special tokens, which the call did not change.
#
# What happens: the call sets truncation and padding in the Rust tokenizer behind it, and save_pretrained writes
# both into tokenizer.json. Whoever reads that file with the `tokenizers` library (and not with transformers, which
# sets its own values at each call) cuts every prompt to N tokens and pads every shorter one to N. What is saved
# depends on the last call before saving: one plain call and the file is clean again.
#
# Versions: transformers 5.24.0 and 4.57.6 (alike), tokenizers 0.23.1 and 0.22.2, no torch.
#
# Why it matters: a training script that counts or cuts its prompts with max_length and then saves the model folder
# ships the limit of its last batch. The fine-tuned model then loses the end of each longer prompt (the question
# stands last, after the image tokens) in every server and tool that loads tokenizer.json with the Rust library or
# its Python binding, and works in every test that loads it with AutoTokenizer. A reader undoes it with
# no_truncation() and no_padding().
#
# Source: the tokenizers documentation (truncation and padding are part of the serialised tokenizer); transformers,
# tokenization_utils_tokenizers.py of 5.x and tokenization_utils_fast.py of 4.57 (set_truncation_and_padding).
#
# Output seen (the same for both versions):
#   saved at once:                       truncation null, a prompt of 50 gives 50 tokens, a prompt of 1 gives 1
#   saved after one call to 16 tokens:   truncation 16, a prompt of 50 gives 16 tokens, a prompt of 1 gives 16
#   saved after one more plain call:     truncation null, a prompt of 50 gives 50 tokens, a prompt of 1 gives 1
#   the second folder by AutoTokenizer:  a prompt of 50 gives 50 tokens
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/check.py" <<'PY'
import json
import sys

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
core = Tokenizer(models.BPE(vocab=letters, merges=[]))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


def saved(folder):
    tokenizer.save_pretrained(folder)
    with open(f"{folder}/tokenizer.json") as file:
        truncation = json.load(file)["truncation"]
    reader = Tokenizer.from_file(f"{folder}/tokenizer.json")
    return truncation and truncation["max_length"], len(reader.encode("x" * 50).ids), len(reader.encode("x").ids)


fresh = saved("fresh")
tokenizer(["x" * 100, "y"], truncation=True, padding="max_length", max_length=16)
used = saved("used")
tokenizer("plain")
again = saved("again")
by_transformers = len(transformers.AutoTokenizer.from_pretrained("used")("x" * 50).input_ids)
if (fresh, used, again, by_transformers) != ((None, 50, 1), (16, 16, 16), (None, 50, 1), 50):
    version = transformers.__version__
    seen = f"{fresh}, {used}, {again}, {by_transformers}"
    sys.exit(f"The behaviour has changed: transformers {version} now gives {seen}.")
names = ("saved at once:", "saved after one call to 16 tokens:", "saved after one more plain call:")
for name, (limit, long, short) in zip(names, (fresh, used, again)):
    print(f"{name:<36} truncation {limit or 'null'}, a prompt of 50 gives {long} tokens, a prompt of 1 gives {short}")
print(f"{'the second folder by AutoTokenizer:':<36} a prompt of 50 gives {by_transformers} tokens")
PY
for packages in "transformers==5.24.0 tokenizers==0.23.1" "transformers==4.57.6 tokenizers==0.22.2"; do
  python3 -m venv --clear "$work/venv"
  read -ra names <<<"$packages"
  "$work/venv/bin/pip" install -qq "${names[@]}"
  echo "# ${names[*]}"
  (cd "$work" && rm -rf fresh used again && TRANSFORMERS_VERBOSITY=error venv/bin/python check.py)
done
