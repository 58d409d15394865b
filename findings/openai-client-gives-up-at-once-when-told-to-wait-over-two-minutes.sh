#!/usr/bin/env bash
# Expected: with max_retries=5 the openai client tries a 429 again up to five times. A Retry-After header makes it
# wait as told, or, if that is longer than the client likes, for its own back-off. "Retry-After: 0" means now.
#
# What happens: a Retry-After of up to 120 seconds is obeyed. From 121 seconds on there is no retry at all, whatever
# max_retries says: the first 429 is raised at once. "Retry-After: 0" is taken as no header, so the client waits its
# own half second. (The same client for Node.js waits as told up to 60 seconds and above that ignores the header and
# tries again after about half a second; measured with its version 7.59.0, not part of this script.)
#
# Versions: openai 3.57.0 (Python).
#
# Why it matters: a server of vision-language models that is loading a model, or a gateway that computes Retry-After
# from its queue, can well name more than two minutes. A batch evaluation with max_retries=10 then loses each such
# row immediately, while the same job against a server that sends no Retry-After survives. An operator who sends the
# honest longer time gets fewer retries and not later ones.
#
# Source: openai 3.57.0, _base_client.py (_should_retry and MAX_RETRY_AFTER_DELAY). The README says only that 429 is
# retried by default.
#
# Output seen (max_retries=5; the server would answer the second request):
#   no Retry-After      2 requests, answered
#   Retry-After: 0      2 requests, answered, after more than 0.3 s
#   Retry-After: 1      2 requests, answered, after more than 0.9 s
#   Retry-After: 121    1 request, RateLimitError at once
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq openai==3.57.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import http.server
import json
import sys
import threading
import time

import openai

MESSAGE = {"role": "assistant", "content": "ok"}
ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
}


class Busy(http.server.BaseHTTPRequestHandler):
    """Refuses the first request and answers the second one."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.count += 1
        first = self.server.count == 1
        body = json.dumps({"error": {"message": "busy"}} if first else ANSWER).encode()
        self.send_response(429 if first else 200)
        if first and self.server.retry_after is not None:
            self.send_header("retry-after", self.server.retry_after)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=5)


def ask(retry_after):
    server.count, server.retry_after, start = 0, retry_after, time.monotonic()
    try:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])
        outcome = "answered"
    except openai.RateLimitError:
        outcome = "RateLimitError"
    return server.count, outcome, time.monotonic() - start


none, zero, one, long = (ask(value) for value in (None, "0", "1", "121"))
if none[:2] != (2, "answered") or one[:2] != (2, "answered") or one[2] < 0.9:
    sys.exit(f"The behaviour has changed: without Retry-After {none}, with one second {one}.")
if zero[:2] != (2, "answered") or zero[2] < 0.3:
    sys.exit(f"The behaviour has changed: Retry-After 0 now gives {zero}.")
if long[:2] != (1, "RateLimitError"):
    sys.exit(f"The behaviour has changed: Retry-After 121 now gives {long}.")
print("no Retry-After      2 requests, answered")
print("Retry-After: 0      2 requests, answered, after more than 0.3 s")
print("Retry-After: 1      2 requests, answered, after more than 0.9 s")
print("Retry-After: 121    1 request, RateLimitError at once")
PY
