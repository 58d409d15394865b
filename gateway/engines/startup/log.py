"""Reads an engine's log: how far it has come in starting, and why it failed. Pure: lines and times in, words out.

What the lines of each engine mean stands in a table of its own beside this module; here are the tables' form, and the
causes that any engine has because of what it stands on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

FIRST_PHASE = "importing its libraries"
MEMORY = "It ran out of GPU memory"


@dataclass(frozen=True)
class Cause:
    """Why an engine failed: what was wrong and what to do, a sentence each.

    `permanent`: every other start would fail too.
    """

    what: str
    change: str
    permanent: bool = True

    def __str__(self) -> str:
        return f"{self.what} {self.change}"


Causes = tuple[tuple[str, Cause], ...]

# {name} is a group of the expression.
COMMON_CAUSES: Causes = (
    (
        r"NVIDIA driver on your system is too old",
        Cause("The NVIDIA driver is too old for the installed PyTorch.", "Update it; `lensmith doctor` names both."),
    ),
    (
        r"no kernel image is available",
        Cause(
            "The installed PyTorch has no kernels for this GPU.",
            "Install a build for an older CUDA version; `lensmith doctor` names both.",
        ),
    ),
    (
        r"address already in use|Address already in use",
        Cause("Its port was taken by another process.", "It is started again on another one.", permanent=False),
    ),
    (
        r"does not recognize this architecture|KeyError: '(?P<type>\w+_vl\w*)'",
        Cause(
            "The installed transformers does not know the model's type.",
            "Update it within what the engine takes; `lensmith doctor` names the versions.",
        ),
    ),
    (
        r"ImportError: cannot import name '(?P<name>\w+)' from '(?P<module>[\w.]+)'",
        Cause(
            "The installed {module} has no {name}: its version does not fit.",
            "`lensmith doctor` names the versions that do.",
        ),
    ),
    (
        r"Failed to find C compiler|Python\.h: No such file",
        Cause(
            "Triton compiles its kernels when they first run and finds no C compiler or no Python headers.",
            "Install gcc and python3-dev.",
        ),
    ),
    (
        r"No space left on device",
        Cause("The disk is full.", "Compiled kernels are kept in the home directory's .triton and .cache."),
    ),
)
_ERROR = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception)): (.+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class EngineLog:
    """What the lines of one engine mean.

    `phases`: what a line contains, and the phase of the start that begins with it. `causes` are tried in their order on
    all lines of a start, before those that any engine has. The others are regular expressions: `cache`'s groups
    multiply to the tokens of the cache; `noise` is not worth passing on (a line for every request, a progress bar);
    after `dead` it answers nothing more, though its process lives on; `empty` ends every failure and names no cause.
    """

    phases: tuple[tuple[str, str], ...] = ()
    causes: Causes = ()
    cache: str = r"(?!)"
    noise: str = r"(?!)"
    dead: str = r"(?!)"
    empty: str = r"(?!)"

    def is_noise(self, line: str) -> bool:
        return re.search(self.noise, line) is not None

    def is_dead(self, line: str) -> bool:
        return re.search(self.dead, line) is not None

    @cached_property
    def _compiled(self) -> tuple[tuple[re.Pattern[str], Cause], ...]:
        return tuple((re.compile(pattern), cause) for pattern, cause in (*self.causes, *COMMON_CAUSES))

    def explain_exit(self, lines: Iterable[str]) -> Cause | None:
        """The cause that these lines of an engine's log show; None if they show none."""
        text = _COLOUR.sub("", "\n".join(lines))
        for pattern, cause in self._compiled:
            found = pattern.search(text)
            if found is not None:
                words = {name: value or "it" for name, value in found.groupdict().items()}
                return Cause(cause.what.format_map(words), cause.change, cause.permanent)
        for line in reversed(text.splitlines()):
            error = _ERROR.search(line)
            if error is not None and re.search(self.empty, line, re.IGNORECASE) is None:
                return Cause(f"{error[1]}: {error[2].strip().rstrip('.')[:300]}.", "Its log has more.", permanent=False)
        return None


@dataclass
class Startup:
    """One start of an engine. Times are seconds since it was started."""

    log: EngineLog
    phases: list[tuple[str, float]] = field(default_factory=lambda: [(FIRST_PHASE, 0.0)])
    cache_tokens: int = 0

    @property
    def phase(self) -> str:
        return self.phases[-1][0]

    def feed(self, line: str, seconds: float) -> bool:
        """Take in a line; whether a new phase began with it."""
        sizes = re.search(self.log.cache, line)
        if sizes is not None:
            self.cache_tokens = prod(int(size.replace(",", "")) for size in sizes.groups())
        for mark, phase in self.log.phases:
            if mark in line and phase not in (name for name, _ in self.phases):
                self.enter(phase, seconds)
                return True
        return False

    def enter(self, phase: str, seconds: float) -> None:
        self.phases.append((phase, seconds))

    def summary(self, seconds: float) -> str:
        """How long each phase took, until `seconds`."""
        ends = [start for _, start in self.phases[1:]] + [seconds]
        spent = [f"{phase} {end - start:.1f} s" for (phase, start), end in zip(self.phases, ends, strict=True)]
        return ", ".join(spent) + (f"; the cache holds {self.cache_tokens:,} tokens" if self.cache_tokens else "")
