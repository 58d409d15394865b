"""What a model's chat template does, found out by rendering it: never by the model's name."""

from __future__ import annotations

from dataclasses import dataclass

from modelfiles.folder.chat_template import ChatTemplateError
from modelfiles.folder.gguf_model import GgufModel
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.ollama.prompts import Conversation, render_model

_ASK = "4f1c question"
_ANSWER = "9b2e answer"


@dataclass(frozen=True)
class ChatFacts:
    """chatml: whether turns look like <|im_start|>user ... <|im_end|>; thinking: whether the template opens a <think>
    block for the answer; default_system: the system prompt it adds by itself; end_of_turn: the special token after an
    answer, or "".
    """

    chatml: bool
    thinking: bool
    default_system: str
    end_of_turn: str


def read_chat_facts(model: ModelFolder | GgufModel) -> ChatFacts:
    """Renders two conversations. Raises ChatTemplateError."""
    asked = {"role": "user", "content": _ASK}
    question, answered = render_model(
        model,
        [
            Conversation("question", [asked]),
            Conversation("answered", [asked, {"role": "assistant", "content": _ANSWER}]),
        ],
    )
    if question is None:
        raise ChatTemplateError("the chat template refuses a single question.")
    before, _, after = question.partition(f"<|im_start|>user\n{_ASK}<|im_end|>\n")
    system_start, system_end = "<|im_start|>system\n", "<|im_end|>\n"
    default_system = ""
    if before.startswith(system_start) and before.endswith(system_end):
        default_system = before[len(system_start) : -len(system_end)]
    tail = (answered or "").rpartition(_ANSWER)[2].lstrip()
    tokens = [text for text, special in model.added_tokens.values() if special and text and tail.startswith(text)]
    return ChatFacts(
        chatml=after.startswith("<|im_start|>assistant\n"),
        thinking=after.rstrip().endswith("<think>"),
        default_system=default_system,
        end_of_turn=max(tokens, key=len, default=""),
    )
