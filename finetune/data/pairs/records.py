"""Records with a chosen and a rejected answer, made into two records of one answer each.

LLaMA-Factory keeps the question in its usual columns (`"ranking": true` in dataset_info.json), TRL in `prompt` or as
the common beginning of two chats (https://huggingface.co/docs/trl/dataset_formats), OpenAI in `input`
(https://platform.openai.com/docs/guides/direct-preference-optimization).
"""

from __future__ import annotations

from typing import Any

from finetune.data.layouts import Layout
from finetune.errors import FinetuneError

ANSWERS = ("chosen", "rejected")


def as_llamafactory(record: Any) -> Any:
    """TRL's and OpenAI's records with LLaMA-Factory's fields; any other value as it is."""
    if not isinstance(record, dict):
        return record
    given = record.get("input")
    if isinstance(given, dict) and "preferred_output" in record:
        rest = {key: value for key, value in record.items() if key not in ("input", *_OPENAI)}
        named = {name: record.get(field) for name, field in zip(ANSWERS, _OPENAI, strict=True)}
        return {"messages": given.get("messages"), "tools": given.get("tools")} | rest | named
    chosen, rejected, prompt = record.get("chosen"), record.get("rejected"), record.get("prompt")
    rest = {key: value for key, value in record.items() if key != "prompt"}
    if isinstance(prompt, str) and isinstance(chosen, str):
        return {"instruction": prompt} | rest
    if not isinstance(chosen, list) or not isinstance(rejected, list) or record.keys() & {"messages", "conversations"}:
        return record
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    elif prompt is None:
        common = 0
        while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
            common += 1
        prompt, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
    return {"messages": prompt} | rest | {"chosen": chosen, "rejected": rejected}


_OPENAI = ("preferred_output", "non_preferred_output")


def split_pair(record: Any, layout: Layout, source: str) -> tuple[Any, Any]:
    """A record with the chosen and one with the rejected answer. Raises FinetuneError naming the row."""
    if not isinstance(record, dict):
        raise FinetuneError(f"{source}: a row must be an object, not {type(record).__name__}.")
    names = [layout.columns.get(name, name) for name in ANSWERS]
    missing = [name for name in names if record.get(name) is None]
    if missing:
        raise FinetuneError(
            f"{source}: stage dpo needs a better and a worse answer, {names[0]!r} and {names[1]!r}; "
            f"{' and '.join(map(repr, missing))} {'is' if len(missing) == 1 else 'are'} missing."
        )
    rest = {key: value for key, value in record.items() if key not in (*names, *ANSWERS)}
    chosen, rejected = (_with_answer(rest, record[name], name, layout, source) for name in names)
    return chosen, rejected


def _with_answer(record: dict[str, Any], answer: Any, name: str, layout: Layout, source: str) -> dict[str, Any]:
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, list):
        raise FinetuneError(f"{source}: {name!r} must be one answer, it has {len(answer)} turns.")
    if layout.kind == "alpaca":
        if isinstance(answer, dict):
            answer = answer.get("content", answer.get("value"))
        if not isinstance(answer, str):
            raise FinetuneError(f"{source}: {name!r} must be a text.")
        return record | {layout.columns["response"]: answer}
    if layout.kind not in ("sharegpt", "openai"):
        raise FinetuneError(f"{source}: captions have no worse answer; stage dpo needs chats or questions.")
    tags, column = layout.tags, layout.columns["messages"]
    if isinstance(answer, str):
        answer = {tags["role_tag"]: tags["assistant_tag"], tags["content_tag"]: answer}
    turns = record.get(column)
    if not isinstance(turns, list) or not turns:
        raise FinetuneError(f"{source}: {column!r} must be a list of turns, up to the question.")
    return record | {column: [*turns, answer]}
