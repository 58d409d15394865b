"""Programs that ask a gateway about a picture, with its real address and model name filled in."""

from __future__ import annotations

import json
import shlex

KEY = "LENSMITH_API_KEY"  # the environment variable in which the programs look for the key


def snippets(url: str, model: str, keyed: bool) -> dict[str, str]:
    """By language: "curl", "python" and "javascript". keyed: whether the gateway asks for a key."""
    return {
        "curl": _curl(url, model, keyed),
        "python": _python(url, model, keyed),
        "javascript": _js(url, model, keyed),
    }


def _curl(url: str, model: str, keyed: bool) -> str:
    key = f' \\\n  -H "authorization: Bearer ${KEY}"' if keyed else ""
    body = (
        '{"model": $model, "max_tokens": 256, "messages": [{"role": "user", "content": [\n'
        '    {"type": "image_url", "image_url": {"url": ("data:image/jpeg;base64," + $picture)}},\n'
        '    {"type": "text", "text": "What is in the picture?"}]}]}'
    )
    return (
        f"base64 -w0 picture.jpg | jq -R --arg model {shlex.quote(model)} '. as $picture | {body}' |\n"
        f"curl {shlex.quote(url + '/v1/chat/completions')} -H 'content-type: application/json'{key} --data-binary @-\n"
    )


def _python(url: str, model: str, keyed: bool) -> str:
    key = f'os.environ["{KEY}"]' if keyed else '"none"'
    return f"""import base64{", os" if keyed else ""}
from openai import OpenAI  # pip install openai

client = OpenAI(base_url={json.dumps(url + "/v1")}, api_key={key})
picture = base64.b64encode(open("picture.jpg", "rb").read()).decode()
stream = client.chat.completions.create(
    model={json.dumps(model, ensure_ascii=False)},
    messages=[{{"role": "user", "content": [
        {{"type": "image_url", "image_url": {{"url": f"data:image/jpeg;base64,{{picture}}"}}}},
        {{"type": "text", "text": "What is in the picture?"}},
    ]}}],
    max_tokens=256,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
"""


def _js(url: str, model: str, keyed: bool) -> str:
    key = f"process.env.{KEY}" if keyed else '"none"'
    return f"""import {{ readFileSync }} from "node:fs";
import OpenAI from "openai"; // npm install openai

const client = new OpenAI({{ baseURL: {json.dumps(url + "/v1")}, apiKey: {key} }});
const picture = readFileSync("picture.jpg").toString("base64");
const answer = await client.chat.completions.create({{
  model: {json.dumps(model, ensure_ascii=False)},
  messages: [{{ role: "user", content: [
    {{ type: "image_url", image_url: {{ url: `data:image/jpeg;base64,${{picture}}` }} }},
    {{ type: "text", text: "What is in the picture?" }},
  ] }}],
  max_tokens: 256,
}});
console.log(answer.choices[0].message.content);
"""
