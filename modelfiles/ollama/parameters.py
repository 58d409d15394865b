"""The PARAMETER lines that a model's generation_config.json decides, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from modelfiles.folder.files import positive_int
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.language.grammar import Command
from modelfiles.ollama.budget import TEXT_TOKENS
from modelfiles.ollama.chat_facts import ChatFacts


@dataclass(frozen=True)
class Line:
    """A directive, why it is there and the file and key that say so ("" if it is a matter of Ollama alone)."""

    command: Command
    reason: str
    source: str = ""


def sampling_lines(folder: ModelFolder) -> list[Line]:
    """temperature, top_p, top_k and repeat_penalty as generation_config.json has them."""
    settings, source = folder.generation_config, "generation_config.json"
    lines = []
    if settings.get("do_sample") is False:
        lines.append(Line(Command("temperature", "0"), "do_sample is false", f"{source}:do_sample"))
    elif number(settings.get("temperature")):
        lines.append(
            Line(Command("temperature", number(settings["temperature"])), "the model's own", f"{source}:temperature")
        )
    for name in ("top_p", "top_k"):
        if number(settings.get(name)) and settings.get("do_sample") is not False:
            lines.append(Line(Command(name, number(settings[name])), "the model's own", f"{source}:{name}"))
    penalty = number(settings.get("repetition_penalty"))
    reason = (
        "the model's own" if penalty else "none; Ollama's default was 1.1 before 0.32.10, which harms short answers"
    )
    where = f"{source}:repetition_penalty" if penalty else ""
    return [*lines, Line(Command("repeat_penalty", penalty or "1.0"), reason, where)]


def answer_limit(folder: ModelFolder, facts: ChatFacts) -> list[Line]:
    """num_predict: without it an answer that derails goes on for thousands of tokens. Thinking may need them."""
    own = positive_int(folder.generation_config.get("max_new_tokens"))
    if own:
        return [Line(Command("num_predict", str(own)), "the model's own", "generation_config.json:max_new_tokens")]
    if facts.thinking:
        return []
    return [Line(Command("num_predict", str(TEXT_TOKENS)), "ends an answer that derails; Ollama's default is no end")]


def number(value: object) -> str:
    """A finite number from a config as Ollama reads it, or ""."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        return ""
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) and value != int(value) else f"{value}"
