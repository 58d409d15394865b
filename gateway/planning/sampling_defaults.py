"""What a model's own generation_config.json wants where a request is silent.

Engines differ in what they make of this file and of its absence: one without `temperature` gives 1.0 in one of them and
0.8 in another, and `do_sample: false` is read by few. The gateway reads it once and sends the values with each request.
"""

from __future__ import annotations

from typing import Any

from modelfiles.folder.model_folder import ModelFolder

# Smallest and largest value of each, as a request may have them.
RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-6, 1.0),
    "top_k": (1, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 100.0),
}
DEFAULT_TEMPERATURE = 1.0  # OpenAI's


def sampling_defaults(folder: ModelFolder) -> dict[str, Any]:
    """Request fields and their values. Values of the file that no request may have are left out."""
    config = folder.generation_config
    if config.get("do_sample") is False:
        return {"temperature": 0}
    found: dict[str, Any] = {"temperature": DEFAULT_TEMPERATURE}
    for name, (low, high) in RANGES.items():
        value = config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            found[name] = int(value) if name == "top_k" else value
    return found
