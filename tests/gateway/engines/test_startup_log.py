"""What an engine's log says of its start: phases, and the cause of a failure in a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.engines.startup.lmdeploy_log import LMDEPLOY_LOG
from gateway.engines.startup.log import Startup
from gateway.engines.startup.smoke_test import SmokeTestFailed, check_smoke_test, is_same_answer

EXIT = [
    "Traceback (most recent call last):",
    "SystemExit: 1",
    "RuntimeError: PyTorch ZMQ engine process exited before publishing RPC server port.",
]
NO_BOS = "'Qwen3VLTextConfig' object has no attribute 'bos_token_id'"
ERROR = "2026-11-21 10:00:01,000 - lmdeploy - ERROR - base.py:53 -"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"{ERROR} AttributeError: {NO_BOS}", "config.json's text_config has no bos_token_id"),
        ("<CUDA> check failed!\ncuda is not available.", "It found no GPU."),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", "driver is too old"),
        ("CUDA error: no kernel image is available for execution on the device", "no kernels for this GPU"),
        ("RuntimeError: No enough gpu memory for kv cache.", "does not hold the weights and a key and value cache."),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "It ran out of GPU memory."),
        (
            "triton.errors.OutOfResources: out of resource: shared memory, Required: 81920, Hardware limit: 65536.",
            "needs 81920 bytes of shared memory and this GPU has 65536.",
        ),
        (
            "ptxas /tmp/x.ptx, line 4; error : Feature '.bf16' requires .target sm_80 or higher",
            "has no bfloat16. Start",
        ),
        ("ERROR: [Errno 98] error while attempting to bind on address: address already in use", "Its port was taken"),
        ("RuntimeError: Can not found rewrite for architectures: ['Foo']", "no model of the architecture ['Foo']."),
        ("KeyError: 'qwen9_vl'", "transformers does not know the model's type."),
        ("'Qwen3VLConfig' object has no attribute 'hidden_size'", "Qwen3VLConfig has no hidden_size."),
        (
            "ImportError: cannot import name 'Qwen3VLModel' from 'transformers' (/site/transformers/__init__.py)",
            "transformers has no Qwen3VLModel: its version does not fit.",
        ),
        ("ModuleNotFoundError: No module named 'mmengine'", "The Python module mmengine is missing."),
        ("RuntimeError: Failed to find C compiler. Please specify via CC", "finds no C compiler"),
        ("RuntimeError: Unknown weight type.", "The weights cannot be read."),
        ("KeyError: 'model.layers.0.q_proj.lora_A'", "which LMDeploy does not know. Merge it"),
        ("lmdeploy serve api_server: error: unrecognized arguments: --frobnicate", "arguments: --frobnicate."),
        ("OSError: [Errno 28] No space left on device", "The disk is full."),
        ("ValueError: the moon is in the wrong house", "ValueError: the moon is in the wrong house."),
    ],
)
def test_the_cause_is_told_in_words(line: str, told: str) -> None:
    cause = LMDEPLOY_LOG.explain_exit(["lmdeploy is starting", f"\x1b[31m{line}\x1b[0m", *EXIT])
    assert cause is not None
    assert told in str(cause)
    assert str(cause).endswith((".", "?"))


def test_a_log_without_a_cause_has_none() -> None:
    assert LMDEPLOY_LOG.explain_exit(["lmdeploy is starting", *EXIT]) is None


def test_real_lines_of_a_start() -> None:
    startup = Startup(LMDEPLOY_LOG)
    lines = (
        (8.8, "2026-11-21 11:45:29,229 - lmdeploy - INFO - async_engine.py:133 - input backend=pytorch, x"),
        (26.7, "2026-11-21 11:45:47,150 - lmdeploy - INFO - base.py:430 - Building Model."),
        (28.9, "Loading weights from safetensors: 100%|██████████| 1/1 [00:00<00:00,  2.16it/s]"),
        (28.9, "2026-11-21 11:45:49,300 - lmdeploy - INFO - base.py:432 - Updating configs."),
        (28.9, "2026-11-21 11:45:49,315 - lmdeploy - INFO - base.py:439 - Building CacheEngine with config:"),
        (
            28.9,
            "CacheConfig(max_batches=64, block_size=64, num_cpu_blocks=0, num_gpu_blocks=18444, x=64)",
        ),
        (28.9, "2026-11-21 11:45:49,319 - lmdeploy - INFO - base.py:446 - Warming up model."),
        (30.8, "2026-11-21 11:45:51,242 - lmdeploy - INFO - full_graph.py:150 - Initialized x, use_graph=True"),
        (34.4, "2026-11-21 11:45:54,764 - lmdeploy - INFO - agent.py:566 - Engine warmup completed in 5.45 seconds."),
    )
    for seconds, line in lines:
        startup.feed(line, seconds)
        assert LMDEPLOY_LOG.is_noise(line)
    assert startup.cache_tokens == 18444 * 64
    assert startup.summary(34.7) == (
        "importing its libraries 8.8 s, starting the engine's process 17.9 s, loading the weights 2.2 s, "
        "sizing the cache 0.0 s, allocating the cache 0.0 s, warming up 1.9 s, capturing CUDA graphs 3.6 s, "
        "opening its port 0.3 s; the cache holds 1,180,416 tokens"
    )
    assert not LMDEPLOY_LOG.is_noise(
        "2026-11-21 11:45:48,800 - lmdeploy - WARNING - __init__.py:47 - For higher performance, x"
    )


def answered(text: str | None, *logprobs: Any) -> dict[str, Any]:
    tokens = [{"token": "x", "logprob": value} for value in logprobs]
    return {"choices": [{"message": {"content": text}, "logprobs": {"content": tokens}}]}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (answered(""), "was empty"),
        (answered(None), "was empty"),
        (answered("!!!!!!!!", -0.1), "as of a model whose numbers overflow"),
        (answered("red", -0.1, None), "had probabilities that are not numbers"),
        (answered("red", float("nan")), "had probabilities that are not numbers"),
        ({"object": "error"}, "was not a chat completion"),
        ([], "was not a chat completion"),
    ],
)
def test_an_unsound_answer_to_the_test_picture(answer: Any, told: str) -> None:
    with pytest.raises(SmokeTestFailed, match=told):
        check_smoke_test(answer)


def test_an_adapter_must_answer_unlike_its_base() -> None:
    base = check_smoke_test(answered("red", -0.5, -0.25))
    assert is_same_answer(base, check_smoke_test(answered("red", -0.5001, -0.25)))
    assert not is_same_answer(base, check_smoke_test(answered("blue", -0.5, -0.25)))
    assert not is_same_answer(base, check_smoke_test(answered("red", -0.6, -0.25)))
    assert not is_same_answer(base, check_smoke_test(answered("red", -0.5)))
    assert check_smoke_test(answered("Wow!", -0.5))[0] == "Wow!"
