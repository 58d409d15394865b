#!/usr/bin/env bash
# Expected: LlamaIndex's OpenAILike, the class for OpenAI-compatible servers such as vLLM, sends a chat of a system
# message and a question with a picture to the server as such a chat, or refuses what it cannot send.
#
# What happens: unless is_chat_model=True is given, chat() writes the messages into one text with headings of its own
# ("system: ", "user: ") and sends it to /v1/completions. The picture is left out without a word, the text parts are
# joined by a newline, and the model's chat template is not applied by the server, as it is no chat any more. The
# answer comes back as the assistant's message of a chat. With is_chat_model=True all is right.
#
# Versions: llama-index-llms-openai-like 0.8.1, llama-index-core 0.14.25, Pillow 13.0.0; a stub server on the loopback
# address in place of vLLM.
#
# Why it matters: the model answers, fluently, on a picture that it was never shown, and a fine-tuned model on a
# prompt without its special tokens. An evaluation through this class measures guessing and looks like a bad model.
# The plain OpenAI class of LlamaIndex has no such default but asks for model names that it knows, which is why people
# with a model of their own use this one.
#
# Source: llama-index-llms-openai-like 0.8.1, base.py (chat); llama-index-core 0.14.25, base/llms/generic_utils.py
# (messages_to_prompt).
#
# Output seen:
#   OpenAILike()
#     /v1/completions, prompt 'system: Be brief.\nuser: What\n is it?\nassistant: ' -> assistant: ok
#   OpenAILike(is_chat_model=True)
#     /v1/chat/completions, parts of the question text, image_url, text -> assistant: ok
#   warnings: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq llama-index-llms-openai-like==0.8.1 llama-index-core==0.14.25 pillow==13.0.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import http.server
import io
import json
import logging
import sys
import threading
import warnings

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike
from PIL import Image

ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "text": "ok", "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
requests = []
said = []


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        requests.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


def describe(path, body):
    if path == "/v1/completions":
        return f"{path}, prompt {body['prompt']!r}"
    parts = [message["content"] for message in body["messages"] if message["role"] == "user"][0]
    return f"{path}, parts of the question {', '.join(part['type'] for part in parts)}"


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
png = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(png, "PNG")
question = [TextBlock(text="What"), ImageBlock(image=png.getvalue()), TextBlock(text=" is it?")]
chat = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", blocks=question)]
logging.getLogger().addHandler(Listener(level="WARNING"))
seen = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for options in ({}, {"is_chat_model": True}):
        model = OpenAILike(model="m", api_base=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", **options)
        answer = model.chat(chat).message
        seen[f"OpenAILike({', '.join(f'{key}={value}' for key, value in options.items())})"] = (
            f"{describe(*requests.pop())} -> {answer.role.value}: {answer.content}"
        )
said += [str(warning.message) for warning in caught if "llama_index" in warning.filename]
expected = [
    r"/v1/completions, prompt 'system: Be brief.\nuser: What\n is it?\nassistant: ' -> assistant: ok",
    "/v1/chat/completions, parts of the question text, image_url, text -> assistant: ok",
]
if list(seen.values()) != expected or said:
    sys.exit(f"The behaviour has changed: the requests are now {seen}, with the warnings {said}.")
for call, request in seen.items():
    print(f"{call}\n  {request}")
print(f"warnings: {len(said)}")
PY
