"""Versions of what Lensmith works with, and the machine: what a bug report should say."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    *("lensmith", "torch", "torchvision", "transformers", "tokenizers", "peft", "accelerate", "bitsandbytes"),
    *("safetensors", "pyarrow", "av", "pillow", "lmdeploy", "ollama"),
)
# Settings of libraries that change what they do, none of them secret.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HOME", "USE_MODELSCOPE_HUB")


def describe_environment() -> dict[str, str]:
    """Name and value of each fact, in order. A package or GPU that is not there is said to be missing."""
    facts = {"python": f"{platform.python_version()} ({platform.python_implementation()})"}
    facts |= {package: _version(package) for package in PACKAGES}
    facts["system"] = platform.platform()
    facts["cores"] = str(len(os.sched_getaffinity(0)))
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    facts["GPU"] = _gpus()
    facts["disk here"] = f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free"
    return facts | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _gpus() -> str:
    """What nvidia-smi says, which needs no torch."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "missing"
    return "; ".join(lines) or "missing"
