"""The figures of a level, from its records: rates, percentiles, goodput."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.bench.client import OK, RequestRecord
from gateway.bench.load import LevelResult, LoadLevel

PERCENTILES = (50, 90, 95, 99)
# The latencies that are reported, and for which a target can be set, in milliseconds.
LATENCIES = ("ttft", "itl", "e2e")


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values in ascending order."""
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles in milliseconds of values in seconds; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    row = {f"p{share}": round(percentile(ordered, share) * 1000, 2) for share in PERCENTILES}
    return {"mean": round(sum(ordered) / len(ordered) * 1000, 2), **row, "max": round(ordered[-1] * 1000, 2)}


def meets(record: RequestRecord, targets: Mapping[str, float]) -> bool:
    """Whether an answer kept to every target in milliseconds; `itl` is its mean time between pieces of text."""
    first = record.end if record.first is None else record.first
    latencies = {
        "ttft": first - record.start,
        "itl": sum(record.gaps) / len(record.gaps) if record.gaps else 0.0,
        "e2e": record.end - record.start,
    }
    return all(latencies[name] * 1000 <= limit for name, limit in targets.items())


def figures(level: LoadLevel, result: LevelResult, targets: Mapping[str, float]) -> dict[str, Any]:
    """The level's row of the report. Rates are over the time from the first request's start to the last one's end."""
    records = result.records
    good = [record for record in records if record.outcome == OK]
    seconds = max(record.end for record in records) - min(record.start for record in records)
    row: dict[str, Any] = {
        "concurrency": level.concurrency or None,
        "rate": level.rate or None,
        "requests": len(records),
        "distinct_bodies": result.distinct,
        "ok": len(good),
        "errors": dict(Counter(record.outcome for record in records if record.outcome != OK)),
        "failed_before_text": sum(record.outcome != OK and record.first is None for record in records),
        "seconds": round(seconds, 3),
        "requests_per_second": round(len(good) / seconds, 3),
        "tokens_per_second": round(sum(record.tokens for record in good) / seconds, 2),
        "prompt_tokens_per_second": round(sum(record.prompt_tokens for record in good) / seconds, 2),
        "tokens_per_answer": round(sum(record.tokens for record in good) / len(good), 2) if good else None,
        "ttft_ms": summary([record.first - record.start for record in good if record.first is not None]),
        "itl_ms": summary([gap for record in good for gap in record.gaps]),
        "e2e_ms": summary([record.end - record.start for record in good]),
        "generator_core_share": round(result.busy, 2),
    }
    if targets:
        row["goodput_per_second"] = round(sum(meets(record, targets) for record in good) / seconds, 3)
    return row
