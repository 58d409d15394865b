"""What the page sends: a conversation with pictures and how to sample, checked before it goes to the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelfiles.folder.atomic_write import write_atomically
from studio.errors import StudioError

Kind = TypeVar("Kind", bound=BaseModel)
KEPT = "conversation.json"  # in the folder of the engine's job
MAX_BODY = 32 << 20  # bytes, the gateway's own default; pictures in base64 are most of it


class Turn(BaseModel):
    """images: `data:` URIs, which the gateway checks."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    text: str = ""
    images: list[str] = Field(default_factory=list)

    def as_message(self) -> dict[str, Any]:
        if not self.images:
            return {"role": self.role, "content": self.text}
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        return {"role": self.role, "content": [*parts, *([{"type": "text", "text": self.text}] if self.text else [])]}


class Sampling(BaseModel):
    """What is not given is the model's own default. The gateway knows the ranges."""

    model_config = ConfigDict(extra="forbid")
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


class Question(BaseModel):
    """side: who is asked."""

    model_config = ConfigDict(extra="forbid")
    side: Literal["base", "tuned"]
    system: str = ""
    turns: list[Turn] = Field(min_length=1)
    sampling: Sampling = Sampling()

    def as_request(self, model: str) -> dict[str, Any]:
        """The chat completion that asks it, streamed, with the token counts at its end."""
        messages = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return {
            "model": model,
            "messages": [*messages, *(turn.as_message() for turn in self.turns)],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.sampling.model_dump(exclude_none=True),
        }


def parse_question(body: bytes) -> Question:
    """Raises StudioError naming the field that is wrong."""
    return _parsed(Question, body)


def _parsed(model: type[Kind], body: bytes) -> Kind:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "body"
        raise StudioError("errors.parameters", name=where[:100]) from None


class Answer(BaseModel):
    """events: what the page was told of it besides the text: who made it, its times, what went wrong."""

    model_config = ConfigDict(extra="forbid")
    text: str = ""
    events: list[dict[str, Any]] = Field(default_factory=list, max_length=8)


class Exchange(BaseModel):
    """One question and the answers of the sides that were asked."""

    model_config = ConfigDict(extra="forbid")
    text: str = ""
    images: list[str] = Field(default_factory=list)
    answers: dict[Literal["base", "tuned"], Answer] = Field(default_factory=dict)


class Conversation(BaseModel):
    """What was said with an engine so far: kept by the studio, so that every page shows it."""

    model_config = ConfigDict(extra="forbid")
    exchanges: list[Exchange] = Field(default_factory=list)


def keep_conversation(folder: Path, body: bytes) -> None:
    """Raises StudioError for what is no conversation, and if the disk does not take it."""
    kept = _parsed(Conversation, body)
    try:
        write_atomically(folder / KEPT, kept.model_dump_json().encode(), mode=0o600, durable=False)
    except OSError as error:
        raise StudioError("errors.disk", status=507, path=folder / KEPT, reason=error.strerror) from None


def kept_conversation(folder: Path) -> Conversation:
    """The conversation with the engine of this job; an empty one if there is none."""
    try:
        return Conversation.model_validate_json((folder / KEPT).read_bytes())
    except (OSError, ValidationError):
        return Conversation()
