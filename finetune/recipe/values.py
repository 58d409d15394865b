"""Spellings of a recipe's values that mean the same, each read as the one that the recipe has."""

from __future__ import annotations

TRACKERS = ("wandb", "mlflow", "swanlab", "trackio")  # of experiments, besides TensorBoard
REPORTS = (
    "`tensorboard` (files in runs/), `wandb`, `mlflow`, `swanlab`, `trackio`, by their libraries, comma separated."
)
SERVERS = ("lensmith", "lmdeploy", "ollama")


def old_quantizer(value: object) -> object:
    """`bitsandbytes` is `bnb`: LLaMA-Factory renamed it in v0.9.3, and silently stopped quantising for the old name."""
    return "bnb" if value == "bitsandbytes" else value


def same_optimizer(value: object) -> object:
    """transformers' names of other programs for AdamW's arithmetic."""
    return {"adamw_torch_fused": "adamw_torch", "adamw_hf": "adamw_torch"}.get(str(value), value)


def joined(value: object) -> object:
    """A YAML list of what LLaMA-Factory wants comma separated; its report_to and fsdp are lists in transformers."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


def known_servers(value: str | None) -> str | None:
    """Raises ValueError if one of the comma-separated names is no server's."""
    unknown = {name.strip() for name in (value or SERVERS[0]).split(",")} - {*SERVERS}
    if unknown:
        raise ValueError(f"{min(unknown)!r} is none of lensmith, lmdeploy and ollama")
    return value


def known_reports(value: str) -> str:
    """Raises ValueError if one of the comma-separated names is of nothing that a run reports to."""
    known = ("none", "tensorboard", "all", *TRACKERS)
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}")
    return ",".join(names)


def yaml_no(value: object) -> object:
    """YAML 1.1 reads `no` as false."""
    return "no" if value is False else value


def rows_or_auto(value: object) -> object:
    """A number of rows, or `auto`. Raises ValueError for anything else."""
    value = number_in_text(value)
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value % 1):
        raise ValueError(f"{value!r} is neither a number of rows, 1 or more, nor auto")
    return value


def number_in_text(value: object) -> object:
    """A text of digits is the number."""
    return int(value) if isinstance(value, str) and value.isdigit() else value
