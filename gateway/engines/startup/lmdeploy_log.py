"""The lines of LMDeploy 0.18's log (pytorch/engine/executor/base.py, model_agent/agent.py, check_env/).

Its own exit code and last line say nothing: it ends with `SystemExit: 1` whatever the cause was.
"""

from __future__ import annotations

from gateway.engines.startup.log import MEMORY, Cause, Causes, EngineLog

_FRACTION = "A smaller --engine-arg cache-max-entry-count or max-prefill-token-num leaves more for the steps"
_CAUSES: Causes = (
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
        r"Can not found rewrite for architectures: (?P<names>[^\n]*)",
        Cause("LMDeploy has no model of the architecture {names}.", "Use --engine transformers."),
    ),
    (
        r"'(?P<config>\w+Config)' object has no attribute '(?P<key>\w+)'",
        Cause(
            "The installed LMDeploy and transformers do not fit together: {config} has no {key}.",
            "`lensmith doctor` names the versions that do.",
        ),
    ),
    (
        r"ModuleNotFoundError: No module named '(?P<module>[\w.]+)'",
        Cause("The Python module {module} is missing.", "pip install 'lensmith[lmdeploy]' brings what LMDeploy needs."),
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
)

LMDEPLOY_LOG = EngineLog(
    phases=(
        ("input backend=", "starting the engine's process"),
        ("Building Model.", "loading the weights"),
        ("Updating configs.", "sizing the cache"),
        ("Building CacheEngine with config", "allocating the cache"),
        ("Warming up model.", "warming up"),
        ("use_graph=True", "capturing CUDA graphs"),
        ("Engine warmup completed", "opening its port"),
    ),
    causes=_CAUSES,
    cache=r"\bCacheConfig\(.*?\bblock_size=(\d+).*?\bnum_gpu_blocks=(\d+)",
    noise=r" - lmdeploy[\w.]* - INFO - |^CacheConfig\(|^HINT: |\d+%\|.*\| \d+/\d+ \[",
    dead=r"Engine main loop failed|EngineLoop wait_tasks failed",
    empty=r"SystemExit|exited before publishing|please send issue|BrokenPipe|ConnectionReset",
)
