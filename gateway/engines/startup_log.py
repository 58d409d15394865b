"""Reads an engine's log: how far it has come in starting, and why it failed. Pure: lines and times in, words out.

The lines are LMDeploy 0.18's (pytorch/engine/executor/base.py, model_agent/agent.py, check_env/) and those of what it
stands on. Its own exit code and last line say nothing: it ends with `SystemExit: 1` whatever the cause was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# What a line means: the phase that begins with it.
PHASES: tuple[tuple[str, str], ...] = (
    ("input backend=", "starting the engine's process"),
    ("Building Model.", "loading the weights"),
    ("Updating configs.", "sizing the cache"),
    ("Building CacheEngine with config", "allocating the cache"),
    ("Warming up model.", "warming up"),
    ("use_graph=True", "capturing CUDA graphs"),
    ("Engine warmup completed", "opening its port"),
)
FIRST_PHASE = "importing its libraries"
_BLOCKS = re.compile(r"\bCacheConfig\(.*?\bblock_size=(\d+).*?\bnum_gpu_blocks=(\d+)")
_NOISE = re.compile(r" - lmdeploy[\w.]* - INFO - |^CacheConfig\(|^HINT: |\d+%\|.*\| \d+/\d+ \[")


@dataclass
class Startup:
    """One start of an engine. Times are seconds since it was started."""

    phases: list[tuple[str, float]] = field(default_factory=lambda: [(FIRST_PHASE, 0.0)])
    cache_tokens: int = 0

    @property
    def phase(self) -> str:
        return self.phases[-1][0]

    def feed(self, line: str, seconds: float) -> bool:
        """Take in a line; whether a new phase began with it."""
        sizes = _BLOCKS.search(line)
        if sizes is not None:
            self.cache_tokens = int(sizes[1]) * int(sizes[2])
        for mark, phase in PHASES:
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


def is_noise(line: str) -> bool:
    """Whether a line is not worth passing on: one written for every request, or a progress bar."""
    return _NOISE.search(line) is not None


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


MEMORY = "It ran out of GPU memory"
_FRACTION = "A smaller --engine-arg cache-max-entry-count or max-prefill-token-num leaves more for the steps"

# Tried in this order on all lines of a start; {name} is a group of the expression.
CAUSES: tuple[tuple[str, Cause], ...] = (
    (
        r"has no attribute '(?P<key>[be]os_token_id)'",
        Cause(
            "config.json's text_config has no {key}, without which LMDeploy does not load a model.",
            "Copy bos_token_id and eos_token_id from generation_config.json into text_config.",
        ),
    ),
    (
        r"No CUDA GPUs are available|cuda is not available|no NVIDIA driver on your system",
        Cause("It found no GPU.", "`lensmith doctor` says why; --engine transformers needs none."),
    ),
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
        r"No enough gpu memory for (?P<what>kv cache|runtime|state cache)",
        Cause(
            "The GPU's free memory does not hold the weights and a key and value cache.",
            "`lensmith plan serve` says what fits; does another process use the GPU?",
        ),
    ),
    (
        r"out of resource: shared memory, Required: (?P<need>\d+), Hardware limit: (?P<limit>\d+)",
        Cause(
            "One of LMDeploy's kernels needs {need} bytes of shared memory and this GPU has {limit}.",
            "The model's head size is too large for the card: use a newer one, or --engine transformers.",
        ),
    ),
    (
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory",
        Cause(f"{MEMORY}.", f"{_FRACTION}; does another process use the GPU?", permanent=False),
    ),
    (
        r"Feature '\.?bf16|bf16 requires|sm_80 or higher",
        Cause("This GPU has no bfloat16.", "Start it with --engine-arg dtype=float16."),
    ),
    (
        r"address already in use|Address already in use",
        Cause("Its port was taken by another process.", "It is started again on another one.", permanent=False),
    ),
    (
        r"Can not found rewrite for architectures: (?P<names>[^\n]*)",
        Cause("LMDeploy has no model of the architecture {names}.", "Use --engine transformers."),
    ),
    (
        r"does not recognize this architecture|KeyError: '(?P<type>\w+_vl\w*)'",
        Cause(
            "The installed transformers does not know the model's type.",
            "Update it within what LMDeploy takes; `lensmith doctor` names the versions.",
        ),
    ),
    (
        r"'(?P<config>\w+Config)' object has no attribute '(?P<key>\w+)'",
        Cause(
            "The installed LMDeploy and transformers do not fit together: {config} has no {key}.",
            "`lensmith doctor` names the versions that do.",
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
        r"ModuleNotFoundError: No module named '(?P<module>[\w.]+)'",
        Cause("The Python module {module} is missing.", "pip install 'lensmith[lmdeploy]' brings what LMDeploy needs."),
    ),
    (
        r"Failed to find C compiler|Python\.h: No such file",
        Cause(
            "Triton compiles its kernels when they first run and finds no C compiler or no Python headers.",
            "Install gcc and python3-dev.",
        ),
    ),
    (
        r"Unknown weight type|SafetensorError|Error while deserializing header",
        Cause("The weights cannot be read.", "`lensmith doctor DIR` checks every file's header."),
    ),
    (
        r"KeyError: '(?P<name>[^']*\.lora_[AB][^']*)'",
        Cause("The adapter has the tensor {name}, which LMDeploy does not know.", "Merge it with `lensmith export`."),
    ),
    (
        r"api_server: error: (?P<what>[^\n]*)",
        Cause("It does not take its arguments: {what}.", "Look at what --engine-arg gives."),
    ),
    (
        r"No space left on device",
        Cause("The disk is full.", "Compiled kernels are kept in the home directory's .triton and .cache."),
    ),
)
_COMPILED = tuple((re.compile(pattern), cause) for pattern, cause in CAUSES)
_ERROR = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception)): (.+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Lines that end every failure of LMDeploy and name no cause.
_EMPTY = re.compile(r"SystemExit|exited before publishing|please send issue|BrokenPipe|ConnectionReset", re.IGNORECASE)


def explain_exit(lines: Iterable[str]) -> Cause | None:
    """The cause that these lines of an engine's log show; None if they show none."""
    text = _COLOUR.sub("", "\n".join(lines))
    for pattern, cause in _COMPILED:
        found = pattern.search(text)
        if found is not None:
            words = {name: value or "it" for name, value in found.groupdict().items()}
            return Cause(cause.what.format_map(words), cause.change, cause.permanent)
    for line in reversed(text.splitlines()):
        error = _ERROR.search(line)
        if error is not None and not _EMPTY.search(line):
            return Cause(f"{error[1]}: {error[2].strip().rstrip('.')[:300]}.", "Its log has more.", permanent=False)
    return None


# A line after which LMDeploy answers nothing more, though its process lives on.
_DEAD = re.compile(r"Engine main loop failed|EngineLoop wait_tasks failed")


def is_dead(line: str) -> bool:
    return _DEAD.search(line) is not None
