"""Numbers, sizes and times as templates show them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

NONE = "\N{EN DASH}"  # where there is no value


def size(count: float) -> str:
    """Bytes as "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float | None) -> str:
    """Seconds as "1:02:03" or "2:03"."""
    if seconds is None:
        return NONE
    hours, rest = divmod(int(max(0, seconds)), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def number(value: float | None) -> str:
    """Four significant digits; thousands apart."""
    if value is None:
        return NONE
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def moment(seconds: float | None) -> str:
    """Seconds since the epoch as UTC in ISO 8601, for <time datetime>; scripts show it in the reader's zone."""
    return datetime.fromtimestamp(seconds or 0, timezone.utc).isoformat(timespec="seconds")


FILTERS: dict[str, Callable[..., str]] = {"size": size, "duration": duration, "number": number, "moment": moment}
