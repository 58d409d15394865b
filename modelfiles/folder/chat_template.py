"""Renders a model folder's own chat template, as transformers would, in a process that can do no harm.

A chat template is a program from whoever made the model. It runs in Jinja's immutable sandbox, in a child process with
limits on time and memory, so that neither `{{ 'a' * 10**12 }}` nor endless loops hurt the caller.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from typing import Any

SECONDS = 2
MEMORY_BYTES = 512 * 2**20
MAX_PROMPT = 1_000_000  # characters


class ChatTemplateError(ValueError):
    """The template cannot be rendered; the message says why in one sentence."""


def render_chat_template(
    template: str, conversations: list[dict[str, Any]], tokens: dict[str, str]
) -> list[str | None]:
    """The prompt of each conversation, None for one that the template refuses.

    A conversation is {"messages": [...], "tools": [...] or None, "add_generation_prompt": bool}; its messages are
    Hugging Face's (content a string, or a list of {"type": "image"} and {"type": "text", "text": ...}). `tokens` are
    the special tokens by name, such as bos_token. Raises ChatTemplateError if the template renders none of them.
    """
    return list(_render(json.dumps({"template": template, "conversations": conversations, "tokens": tokens})))


@lru_cache(maxsize=64)
def _render(job: str) -> tuple[str | None, ...]:
    """The prompts of a job; the same job is asked several times by `generate`, `lint` and `doctor`."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__], input=job.encode(), capture_output=True, timeout=SECONDS * 4, check=False
        )
    except subprocess.TimeoutExpired:
        raise ChatTemplateError("the chat template takes too long.") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ChatTemplateError(f"the chat template takes too much time or memory, or cannot run: {lines[0][:200]}.")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ChatTemplateError(f"the chat template fails: {answer['error']}.")
    return tuple(answer["prompts"])


def to_hugging_face(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as Ollama has them (`images`: how many, before the text) in Hugging Face's form."""
    converted = []
    for message in messages:
        count = message.get("images", 0)
        count = count if isinstance(count, int) else len(count)
        changed = {key: value for key, value in message.items() if key != "images"}
        if count:
            changed["content"] = [*[{"type": "image"}] * count, {"type": "text", "text": message.get("content", "")}]
        converted.append(changed)
    return converted


def _child() -> None:
    """Reads a job from stdin and writes {"prompts": [...]} or {"error": ...} to stdout."""
    import resource
    from datetime import datetime

    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    job = json.load(sys.stdin)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    # The settings of transformers' utils/chat_template_utils.py.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        compiled = environment.from_string(job["template"])
    except (jinja2.TemplateError, RecursionError) as error:
        json.dump({"error": f"{type(error).__name__}: {str(error)[:200]}"}, sys.stdout)
        return
    prompts: list[str | None] = []
    refusal = ""
    for conversation in job["conversations"]:
        try:
            prompt = compiled.render(**conversation, **job["tokens"])
            if len(prompt) > MAX_PROMPT:
                raise ValueError("the prompt is too long")
            prompts.append(prompt)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            prompts.append(None)
            refusal = refusal or f"{type(error).__name__}: {str(error)[:200]}"
    json.dump({"prompts": prompts} if any(prompts) or not refusal else {"error": refusal}, sys.stdout)


if __name__ == "__main__":
    _child()
