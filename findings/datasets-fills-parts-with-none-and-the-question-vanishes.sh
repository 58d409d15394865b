#!/usr/bin/env bash
# Expected: a conversation in the content-parts form that is put into a `datasets.Dataset` and taken out again
# renders to the same prompt. At worst something fails.
#
# What happens: Arrow stores the parts of all messages under one set of keys, so a text part comes back as {"type":
# "text", "image": None, "text": ...}. The Qwen2.5-VL and Qwen3-VL templates ask whether the key 'image' is IN the
# part, before they look at the text. The question is replaced by an image placeholder: a text-only row loses its
# question and gains a placeholder for an image that it does not have, and a row with an image has two placeholders
# and no question.
#
# Versions: datasets 5.2.0 (pyarrow 26.0.1), Jinja2 3.1.6, the template qwen3_vl.jinja as packed in TRL 1.16.0.
#
# Why it matters: this is the documented form of vision chat data, and Dataset.from_list the usual way to build it;
# Parquet gives the same. Where a collator or a length filter renders rows itself, text-only rows are trained on
# answers without a question. Templates that compare the part's type (Gemma 3, SmolVLM) are not affected, so code
# tested with one family fails with the other. Removing the None keys from each part before rendering repairs it.
#
# Source: the condition in the template itself ("content.type == 'image' or 'image' in content or 'image_url' in
# content"); a struct column of Arrow has one set of fields for all rows (Arrow columnar format, "Struct Layout").
#
# Output seen:
#   as written:      <|im_start|>user\nWhat is 2+2?<|im_end|>\n
#   from a Dataset:  <|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n
#   without Nones:   <|im_start|>user\nWhat is 2+2?<|im_end|>\n
#   row with image:  1 placeholder as written, 2 from a Dataset, and 'What colour?' is gone
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq datasets==5.2.0 pyarrow==26.0.1 jinja2==3.1.6
"$work/venv/bin/pip" install -qq --no-deps --target "$work/trl" trl==1.16.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import pathlib
import sys

import datasets
from jinja2.sandbox import ImmutableSandboxedEnvironment

source = pathlib.Path("trl/trl/chat_templates/qwen3_vl.jinja").read_text()
template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)


def chat(*question, answer):
    answer_part = {"type": "text", "text": answer}
    return [{"role": "user", "content": list(question)}, {"role": "assistant", "content": [answer_part]}]


image = chat({"type": "image", "image": "chair.png"}, {"type": "text", "text": "What colour?"}, answer="red")
text = chat({"type": "text", "text": "What is 2+2?"}, answer="4")
stored = datasets.Dataset.from_list([{"messages": image}, {"messages": text}])["messages"]


def without_none(messages):
    return [
        {**message, "content": [{k: v for k, v in part.items() if v is not None} for part in message["content"]]}
        for message in messages
    ]


written, taken, cleaned = (template.render(messages=m) for m in (text, stored[1], without_none(stored[1])))
with_image = [template.render(messages=m) for m in (image, stored[0])]
placeholders = [prompt.count("<|image_pad|>") for prompt in with_image]
if "2+2" in taken or taken.count("<|image_pad|>") != 1 or cleaned != written:
    sys.exit(f"The behaviour has changed: the text-only row now renders to {taken!r}.")
if placeholders != [1, 2] or "What colour?" in with_image[1]:
    sys.exit(f"The behaviour has changed: the row with an image now renders to {with_image[1]!r}.")
for name, prompt in {"as written": written, "from a Dataset": taken, "without Nones": cleaned}.items():
    shown = prompt.partition("<|im_start|>assistant")[0].replace("\n", "\\n")
    print(f"{name + ':':<16} {shown}")
print("row with image:  1 placeholder as written, 2 from a Dataset, and 'What colour?' is gone")
PY
