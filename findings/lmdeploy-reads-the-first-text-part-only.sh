#!/usr/bin/env bash
# Expected: a server with OpenAI's chat API shows the model every text part of a message with a picture, and each
# message in the role that it has.
#
# What happens in LMDeploy with LLaVA, Llama 4, Gemma 3, GLM-4V and Phi-3-vision, once a chat has a picture:
# - Of a message in the form of parts only the first text part reaches the prompt. The others are dropped without a
#   word, and the pictures are put in front.
# - A message in the form of parts becomes the user's, whoever wrote it: so an earlier answer that the client sends
#   back in that form.
# In a chat without a picture the same parts are joined by a newline, and every role stays.
#
# Versions: LMDeploy 0.18.0, transformers 4.57.6, torch 2.13.0.
#
# Why it matters: context, picture, question is a natural order, and there the question stands last. The model is then
# asked nothing, and says something plausible about the picture; the number of prompt tokens is the only sign.
# Examples of answers (few-shot) become the user's words. The same request is right with Qwen2-VL in the same server,
# so it is the model that looks bad. Send one text part for each message with a picture, and plain strings for all
# others.
#
# Source: LMDeploy 0.18.0, vl/model/llava_hf.py and its neighbours (proc_messages takes content[0] of the texts and
# writes the role user).
#
# Output seen (what the chat template gets after the system message; "12.50" was the assistant's):
#   LLaVA         user '<IMAGE_TOKEN>\nThis is a receipt.', user '12.50', user 'And the tax?'
#   Llama 4       user '<IMAGE_TOKEN>This is a receipt.', user '12.50', user 'And the tax?'
#   Gemma 3       user '\n\n<IMAGE_TOKEN>\n\nThis is a receipt.', user '12.50', user 'And the tax?'
#   GLM-4V        user '<IMAGE_TOKEN>\nThis is a receipt.', user '12.50', user 'And the tax?'
#   Phi-3-vision  user '<IMAGE_TOKEN>\nThis is a receipt.', user '12.50', user 'And the tax?'
#   Qwen2-VL      user 'This is a receipt.<|vision_start|><|image_pad|><|vision_end|>What is the total?', assistant kept
#   no picture    user 'This is a receipt.\nWhat is the total?'
#   warnings: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 transformers==4.57.6 pydantic==2.14.4 mmengine-lite==0.10.7 \
  psutil==7.2.2 pillow==13.0.0 pybase64==1.5.1 shortuuid==1.0.13
"$work/venv/bin/pip" install -qq --no-deps lmdeploy==0.18.0
cd "$work"
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PY'
import asyncio
import base64
import importlib
import io
import logging
import sys
from types import SimpleNamespace

from lmdeploy.serve.processors.multimodal import MultimodalProcessor
from lmdeploy.vl.model.qwen2 import Qwen2VLModel
from PIL import Image

FAMILIES = [
    ("LLaVA", "llava_hf", "LlavaHfVisionModel"),
    ("Llama 4", "llama4", "LLama4VisionModel"),
    ("Gemma 3", "gemma3_vl", "Gemma3VisionModel"),
    ("GLM-4V", "glm4_v", "GLM4VisionModel"),
    ("Phi-3-vision", "phi3_vision", "Phi3VisionModel"),
]
said = []


class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


class Template:
    """A chat template that hands back the messages that it is given."""

    def messages2prompt(self, messages, **options):
        return messages


png = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(png, "PNG")
picture = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
chat = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "This is a receipt."},
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": "What is the total?"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "12.50"}]},
    {"role": "user", "content": "And the tax?"},
]
logging.getLogger("lmdeploy").addHandler(Listener(level="WARNING"))
parsed = asyncio.run(MultimodalProcessor.async_parse_multimodal_item(chat))
for family, module, name in FAMILIES:
    vision = getattr(importlib.import_module(f"lmdeploy.vl.model.{module}"), name)
    messages, placeholder = vision.proc_messages(parsed, Template())
    roles = [message["role"] for message in messages]
    text = "\n".join(message["content"] for message in messages)
    if "What is the total?" in text or "This is a receipt." not in text or placeholder not in text:
        sys.exit(f"The behaviour has changed: {family} is now shown {messages}.")
    if roles != ["system", "user", "user", "user"] or said:
        sys.exit(f"The behaviour has changed: with {family} the roles are now {roles}, with the warnings {said}.")
    shown = ", ".join(f"{message['role']} {message['content']!r}" for message in messages[1:])
    print(f"{family:<13} {shown}")
control = Qwen2VLModel.proc_messages(SimpleNamespace(image_token="<|image_pad|>"), parsed, Template())[0]
if "What is the total?" not in control[1]["content"] or control[2]["role"] != "assistant":
    sys.exit(f"The behaviour has changed: Qwen2-VL is now shown {control}.")
print(f"{'Qwen2-VL':<13} {control[1]['role']} {control[1]['content']!r}, {control[2]['role']} kept")
texts = [part for part in chat[1]["content"] if part["type"] == "text"]
alone = MultimodalProcessor.merge_message_content({"role": "user", "content": texts})
print(f"no picture    {alone['role']} {alone['content']!r}")
print(f"warnings: {len(said)}")
PY
