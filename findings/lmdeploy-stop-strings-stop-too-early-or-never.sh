#!/usr/bin/env bash
# Expected: `stop` in a request ends the answer where the text of a stop string appears, as OpenAI documents it, however
# the text is cut into tokens; or a stop string that cannot be honoured is refused.
#
# What happens in LMDeploy: stop strings become token ids before the answer begins.
# - One that is two tokens or more is dropped: a line in the server's log, the request runs to max_tokens.
# - One that is a token becomes every token that contains it: with "END" an answer also ends at BEND or SEND, and that
#   token is left out of the text (so the documentation of stop_token_ids), with finish_reason "stop".
# - A line end or a space is compared with the vocabulary's own spelling of bytes, where it is another character, so
#   only the token that is a single line end stops: an answer runs past "\n\n".
#
# Versions: LMDeploy 0.18.0, transformers 4.57.6, torch 2.13.0.
#
# Why it matters: stop strings are how answers of fine-tuned models are kept to one line, one turn or one field. Scores
# that were measured with transformers or vLLM, which look at the text, are not those of the server, and the same
# stop string works with one model's vocabulary and not with another's.
#
# Source: LMDeploy 0.18.0, messages.py (convert_stop_bad_words_to_ids) and tokenizer.py (indexes_containing_token).
#
# Output seen (stop -> tokens at which LMDeploy ends the answer):
#   ["### Next"]  ->  none
#   ["END"]       ->  BEND, END, SEND
#   ["\n"]        ->  \n     (the vocabulary has \n\n too)
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

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# A byte-level vocabulary such as Qwen's, in which END, SEND, BEND and an empty line are tokens.
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
)
bpe.train_from_iterator(["END", "SEND", "BEND", "a\n\n", "a\n"] * 500, trainer)
fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
fast.save_pretrained("model")
with open("model/config.json", "w") as file:
    json.dump({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, file)

from lmdeploy.messages import GenerationConfig
from lmdeploy.tokenizer import Tokenizer as EngineTokenizer

logging.getLogger("lmdeploy").setLevel("ERROR")  # the line about a stop string that is dropped
tokenizer = EngineTokenizer("model")
for word in ("END", "SEND", "BEND", "\n", "\n\n"):
    if len(fast.encode(word)) != 1:
        sys.exit(f"This script's vocabulary should have {word!r} as a token.")
cases = [("### Next", []), ("END", ["BEND", "END", "SEND"]), ("\n", ["\n"])]
for stop, expected in cases:
    config = GenerationConfig(stop_words=[stop])
    config.convert_stop_bad_words_to_ids(tokenizer)
    seen = sorted(fast.decode([index]) for index in config.stop_token_ids or [])
    if seen != expected:
        sys.exit(f"The behaviour has changed: {json.dumps([stop])} now stops at {seen}.")
    print(f"{json.dumps([stop]):<13} ->  {', '.join(json.dumps(text)[1:-1] for text in seen) or 'none'}")
PY
