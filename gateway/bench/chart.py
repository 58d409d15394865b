"""The report as a picture: throughput and latencies over the load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.bench.figures import LATENCIES

TITLES = {"ttft": "time to first token", "itl": "between tokens", "e2e": "end to end"}


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Write a PNG with requests/s and the p50 and p99 of every latency that was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    levels = report["levels"]
    closed = bool(levels[0]["concurrency"])
    loads = [row["concurrency"] or row["rate"] for row in levels]
    measured = [name for name in LATENCIES if all(row[f"{name}_ms"] for row in levels)]
    figure, axes = plt.subplots(1, 1 + len(measured), figsize=(4 * (1 + len(measured)), 3.6), layout="constrained")
    panels = [axes] if not measured else list(axes)
    panels[0].plot(loads, [row["requests_per_second"] for row in levels], "o-", label="answered")
    if report["goodput_ms"]:
        panels[0].plot(loads, [row["goodput_per_second"] for row in levels], "o--", label="within target")
        panels[0].legend()
    panels[0].set(title="requests/s", ylim=(0, None))
    for panel, name in zip(panels[1:], measured, strict=True):
        for share in ("p50", "p99"):
            panel.plot(loads, [row[f"{name}_ms"][share] for row in levels], "o-", label=share)
        if name in report["goodput_ms"]:
            panel.axhline(report["goodput_ms"][name], color="grey", linestyle=":", label="target")
        panel.set(title=f"{TITLES[name]}, ms", ylim=(0, None))
        panel.legend()
    for panel in panels:
        panel.set_xlabel("requests at once" if closed else "requests begun a second")
        panel.grid(alpha=0.3)
    figure.suptitle(report["model"])
    figure.savefig(path, dpi=120)
    plt.close(figure)
