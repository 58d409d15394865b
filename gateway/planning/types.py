"""What a plan is made of: the load it is for, the flags it chose with their reasons, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.config.engine_args import as_text, command_line
from gateway.planning.gpu import Gpu
from gateway.planning.lmdeploy_memory import KvCache


@dataclass(frozen=True)
class Choice:
    """A flag of an engine's command without its dashes; `value` True is a flag that takes none."""

    option: str
    value: str | int | float | bool
    reason: str


@dataclass(frozen=True)
class Workload:
    """What requests look like. `concurrency` answers at once and `session_len` tokens: None takes what fits."""

    images: int = 1
    image_size: tuple[int, int] = (1024, 1024)
    concurrency: int | None = None
    session_len: int | None = None


@dataclass(frozen=True)
class Problem:
    what: str
    change: str


@dataclass
class EnginePlan:
    """Sizes in bytes and on each GPU. `cache` is None when the model does not fit; then `problems` says so."""

    model: str
    gpu: Gpu
    tp: int
    weights: int
    free: int
    reserve: int
    activations: int
    token_bytes: int
    image_tokens: int
    request_tokens: int
    cache: KvCache | None
    sessions: int
    by_fraction: dict[float, int]
    image_pixels: int
    choices: list[Choice] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def value(self, option: str) -> str | int | float | bool:
        return next((choice.value for choice in self.choices if choice.option == option), False)

    def arguments(self) -> list[str]:
        """The choices as arguments of the engine's command."""
        return command_line({choice.option: as_text(choice.value) for choice in self.choices})


def with_given(
    chosen: Sequence[Choice], given: Mapping[str, str], reasons: Mapping[str, str] | None = None
) -> list[Choice]:
    """`chosen` with the user's own flags in their places, and more of them behind. `reasons`: of some of those."""
    known = {choice.option: choice for choice in chosen}
    for option, text in given.items():
        value: str | bool = {"true": True, "false": False}.get(text.lower(), text)
        known[option] = Choice(option, value, (reasons or {}).get(option, "as given"))
    return list(known.values())


class EnginePlanError(ValueError):
    """No plan can be made; one sentence for the user."""
