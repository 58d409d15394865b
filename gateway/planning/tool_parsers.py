"""The engines' flags for what an answer may hold, among them the parser of a model's tool calls."""

from __future__ import annotations

from modelfiles.folder.model_folder import ModelFolder


def tool_call_parser(folder: ModelFolder) -> str | None:
    """The name for `--tool-call-parser` (lmdeploy 0.18, serve/parsers/tool_parser); None if the template has no tools.

    The template decides and not the architecture: a fine-tuned model may have another one than its base.
    """
    template = folder.chat_template or ""
    if "tools" not in template:
        return None
    if "<tool_call>" in template:
        # Qwen3.5 and Qwen3-Coder write XML into the tag, all others JSON.
        return "qwen3coder" if "<function=" in template else "qwen3"
    if "<|plugin|>" in template:
        return "internlm"
    if "<|python_tag|>" in template:
        return "llama3"
    return None


def answer_flags(folder: ModelFolder) -> dict[str, str]:
    """Options of `lmdeploy serve api_server` that the gateway counts on, wherever the engine runs."""
    flags = {"logprobs-mode": "raw_logprobs", "enable-abort-handling": "true"}
    parser = tool_call_parser(folder)
    return flags if parser is None else {**flags, "tool-call-parser": parser}


# vllm 0.33, tool_parsers/__init__.py; 0.25 has the same names.
_OF_VLLM = {"qwen3": "hermes", "qwen3coder": "qwen3_coder", "internlm": "internlm", "llama3": "llama3_json"}


def vllm_answer_flags(folder: ModelFolder) -> dict[str, str]:
    """Options of `vllm serve` that the gateway counts on. Log-probabilities it gives unasked, as raw ones."""
    parser = tool_call_parser(folder)
    return {} if parser is None else {"enable-auto-tool-choice": "true", "tool-call-parser": _OF_VLLM[parser]}
