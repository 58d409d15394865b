"""The lines of vLLM's log: 0.33.0, and those of 0.25.1 where it has others (v1/engine/, v1/worker/, v1/core/).

Its engine is a process of its own. When that fails the server's last line is "Engine core initialization failed. See
root cause above.", and the cause stands in the lines of the engine's process before it.
"""

from __future__ import annotations

from gateway.engines.startup.log import MEMORY, Cause, Causes, EngineLog

_LESS = "A smaller --engine-arg max-model-len or max-num-seqs needs less"
_CAUSES: Causes = (
    (
        r"No CUDA GPUs are available|Failed to infer device type|no NVIDIA driver on your system",
        Cause("It found no GPU.", "`lensmith doctor` says why; --engine transformers needs none."),
    ),
    (
        r"Free memory on device \S+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup",
        Cause(
            "Of the card's {total} GiB only {free} are free, less than gpu-memory-utilization asks for.",
            "Does another process use the GPU? --engine-arg gpu-memory-utilization=0.5 asks for half.",
            permanent=False,
        ),
    ),
    (
        r"No available memory for the cache blocks",
        Cause(
            "The GPU's free memory does not hold the weights and a key and value cache.",
            "`lensmith plan serve` says what fits; does another process use the GPU?",
        ),
    ),
    (
        r"max seq len \((?P<length>\d+)\), \((?P<need>[\d.]+) GiB KV\s+cache is needed",
        Cause(
            "The cache is too small for one request of {length} tokens, which needs {need} GiB.",
            "Take a smaller --engine-arg max-model-len; `lensmith plan serve` says what fits.",
        ),
    ),
    (
        r"User-specified max_model_len \((?P<length>\d+)\) is greater",
        Cause(
            "The model was not made for {length} tokens.", "Take a smaller --engine-arg max-model-len, or leave it out."
        ),
    ),
    (
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory",
        Cause(f"{MEMORY}.", f"{_LESS}; does another process use the GPU?", permanent=False),
    ),
    (
        r"Bfloat16 is only supported on GPUs",
        Cause("This GPU has no bfloat16.", "Start it with --engine-arg dtype=float16."),
    ),
    (
        r"Model architectures (?P<names>\[[^\]\n]*\]) are not supported for now",
        Cause("vLLM has no model of the architecture {names}.", "Use --engine transformers."),
    ),
    (
        r"invalid tool call parser: (?P<name>\S+)",
        Cause("The installed vLLM has no tool-call parser {name}.", "Name another with --engine-arg tool-call-parser."),
    ),
    (
        r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank",
        Cause("An adapter has rank {rank}, more than vLLM was told.", "Give --engine-arg max-lora-rank={rank}."),
    ),
    (
        # Killed from outside, or by a fault that Python does not see. Of its own exceptions it tells itself.
        r"(?s)\A(?!.*EngineCore encountered a fatal error).*\bengine core exited unexpectedly",
        Cause(
            "Its process EngineCore was ended.",
            "The kernel does that when the machine's memory is full.",
            permanent=False,
        ),
    ),
    (
        r"ModuleNotFoundError: No module named '(?P<module>[\w.]+)'",
        Cause("The Python module {module} is missing.", "pip install vllm brings what it needs."),
    ),
    (
        r"\b(?:vllm|main)(?:\.py)?[\w ]*: error: (?P<what>[^\n]*)",
        Cause("It does not take its arguments: {what}.", "Look at what --engine-arg gives."),
    ),
)

VLLM_LOG = EngineLog(
    phases=(
        ("Initializing a V1 LLM engine", "starting the engine's process"),
        ("Starting to load model", "loading the weights"),
        ("Model loading took", "compiling, and sizing the cache"),
        ("KV cache size: ", "warming up and capturing CUDA graphs"),
        ("init engine (profile, create kv cache", "opening its port"),
    ),
    causes=_CAUSES,
    cache=r"KV cache size: ([\d,]+) tokens",
    # At INFO it says how far it has come, and every 10 s how fast it is.
    noise=r"^(?:\([^)]*pid=\d+\) )?INFO \d\d-\d\d |\d+%(?:\|.*| Completed )\| \d+/\d+ \[",
    # Its server ends by itself then, once the requests that are there have been told.
    dead=r"EngineCore encountered a fatal error|\bengine core exited unexpectedly",
    empty=r"SystemExit|Engine core initialization failed|EngineDeadError|BrokenPipe|ConnectionReset",
)
