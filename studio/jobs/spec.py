"""What a job is to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CPU = -1  # in `gpus`: the processor as a whole, of which one heavy job at a time makes use


@dataclass(frozen=True)
class JobSpec:
    """A command that runs in a process group of its own.

    kind: "train", "evaluate", "import" …; title: what the page calls it. gpus: indices of the GPUs (or CPU) that it
    needs for itself; it waits until no earlier job has one of them and sees no other ones. about: what it belongs to,
    such as {"run": name}. exclusive: of two jobs with the same text, the second is refused while the first is not over.
    grace: seconds from a stop (SIGTERM) to the kill (SIGKILL). silence: seconds without a byte of output after which it
    counts as hung and is ended; None: never.
    """

    kind: str
    title: str
    command: list[str]
    cwd: Path
    gpus: tuple[int, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    exclusive: str | None = None
    grace: float = 30.0
    silence: float | None = None

    def as_plain(self) -> dict[str, Any]:
        return asdict(self) | {"cwd": str(self.cwd)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> JobSpec:
        return cls(**values | {"cwd": Path(values["cwd"]), "gpus": tuple(values["gpus"])})
