#!/usr/bin/env bash
# Expected: the same OpenAI-style messages (a system message; a question of the parts text, image, text) reach an
# Ollama server as the same chat, whichever client sends them.
#
# What happens: three routes, three questions.
# - LiteLLM, model "ollama/NAME": not sent to /api/chat at all. The messages are written into one text with headings
#   of LiteLLM's own ("### System:", "### User:") and sent to /api/generate. The server puts the model's chat
#   template around that text, so the system prompt and the headings stand inside the user's turn. The parts are
#   joined by a newline.
# - LangChain's ChatOllama: /api/chat, but every text part gets a newline in front, the first one too: the question
#   starts with one.
# - LiteLLM, model "ollama_chat/NAME": /api/chat, parts joined as written. Of the three this alone sends what the
#   caller wrote.
#
# Versions: litellm 1.110.2, langchain-ollama 1.1.0, Pillow 13.0.0; a stub server on the loopback address in place
# of Ollama.
#
# Why it matters: a fine-tuned model was trained on one exact prompt. Through "ollama/" it sees a template that it
# has never seen, inside its own, and no system turn; through ChatOllama every question begins with a newline.
# Neither raises an error, and an evaluation through one client says nothing about the other.
#
# Source: LiteLLM's documentation of the Ollama provider recommends "ollama_chat" without naming the reason (litellm
# 1.110.2, prompt_templates/factory.py: ollama_pt); langchain-ollama 1.1.0, chat_models.py (content parts are added
# with a newline each).
#
# Output seen:
#   litellm ollama/           POST /api/generate  '### System:\nBe brief.\n\n### User:\nWhat\n is it?\n\n'
#   litellm ollama_chat/      POST /api/chat      system 'Be brief.', user 'What is it?'
#   langchain ChatOllama      POST /api/chat      system 'Be brief.', user '\nWhat\n is it?'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq litellm==1.110.2 langchain-ollama==1.1.0 pillow==13.0.0
cd "$work"
LITELLM_LOCAL_MODEL_COST_MAP=True LANGSMITH_TRACING=false "$work/venv/bin/python" -W ignore - <<'PY'
import base64
import http.server
import io
import json
import sys
import threading

import litellm
from langchain_ollama import ChatOllama
from PIL import Image

ANSWER = {
    "model": "m",
    "created_at": "2026-01-01T00:00:00Z",
    "done": True,
    "done_reason": "stop",
    "message": {"role": "assistant", "content": "ok"},
    "response": "ok",
    "prompt_eval_count": 1,
    "eval_count": 1,
}
requests = {}


class Ollama(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        requests[self.path] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = (json.dumps(ANSWER if self.path != "/api/show" else {}) + "\n").encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ollama)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
png = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(png, "PNG")
image = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
question = [
    {"type": "text", "text": "What"},
    {"type": "image_url", "image_url": {"url": image}},
    {"type": "text", "text": " is it?"},
]


def sent():
    path, body = next((path, body) for path, body in requests.items() if path != "/api/show")
    requests.clear()
    if path == "/api/generate":
        return path, repr(body["prompt"])
    return path, ", ".join(f"{message['role']} {message['content']!r}" for message in body["messages"])


chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
seen = {}
for route in ("ollama", "ollama_chat"):
    litellm.completion(model=f"{route}/m", messages=chat, api_base=url)
    seen[f"litellm {route}/"] = sent()
ChatOllama(model="m", base_url=url).invoke([("system", "Be brief."), ("user", question)])
seen["langchain ChatOllama"] = sent()
expected = [
    ("/api/generate", repr("### System:\nBe brief.\n\n### User:\nWhat\n is it?\n\n")),
    ("/api/chat", "system 'Be brief.', user 'What is it?'"),
    ("/api/chat", r"system 'Be brief.', user '\nWhat\n is it?'"),
]
if list(seen.values()) != expected:
    sys.exit(f"The behaviour has changed: the clients now send {seen}.")
for client, (path, text) in seen.items():
    print(f"{client:<25} POST {path:<14} {text}")
PY
