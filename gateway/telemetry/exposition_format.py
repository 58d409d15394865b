"""Reads and writes Prometheus' text exposition format: engines' metrics renamed, labelled and merged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

PREFIX = "lensmith_engine_"
LINES_LIMIT = 10_000

# LMDeploy 0.18 refreshes these every 10 s only, and its queue is not where it counts; `lensmith_requests_running` and
# `lensmith_requests_waiting` are exact.
LEFT_OUT = frozenset(
    f"lmdeploy:num_{name}"
    for name in ("requests_running", "requests_waiting", "api_requests_routed", "api_requests_waiting")
)

# https://github.com/prometheus/docs/blob/main/docs/instrumenting/exposition_formats.md, version 0.0.4.
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
META = re.compile(rf"# (HELP|TYPE) ({NAME}) (.*)")
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? ([-+.0-9a-zA-Z]+)(?: -?[0-9]+)?")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\"n])*)"')
LABELS = re.compile(rf"{LABEL.pattern}(?:,{LABEL.pattern})*,?")
KINDS = frozenset(("counter", "gauge", "histogram", "summary"))
SUFFIXES = ("_bucket", "_sum", "_count", "_total")


@dataclass
class MetricFamily:
    """A metric of engines: all its samples stand together, after its two comments."""

    kind: str = "untyped"
    help: str = ""
    samples: list[str] = field(default_factory=list)


def merge_exposition(families: dict[str, MetricFamily], text: str, engine: str) -> None:
    """Add the metrics in an engine's exposition to `families`, under their new names."""
    label = f'engine="{escape(engine)}"'
    for line in text.split("\n")[:LINES_LIMIT]:
        if (meta := META.fullmatch(line)) is not None:
            what, name, rest = meta.groups()
            if name in LEFT_OUT:
                continue
            family = families.setdefault(renamed(name), MetricFamily())
            if what == "TYPE":
                family.kind = rest if rest in KINDS else "untyped"
            else:
                family.help = rest
        elif (sample := SAMPLE.fullmatch(line)) is not None:
            name, labels, value = sample.groups()
            if name in LEFT_OUT or name.endswith("_created") or (labels and LABELS.fullmatch(labels) is None):
                continue
            try:
                float(value)
            except ValueError:
                continue
            # An `engine` label of its own becomes `exported_engine`, as Prometheus does it.
            pairs = {"exported_engine" if key == "engine" else key: text for key, text in LABEL.findall(labels or "")}
            written = ",".join([label, *(f'{key}="{text}"' for key, text in pairs.items() if key[:2] != "__")])
            new = renamed(name)
            family = families.setdefault(family_of(new, families), MetricFamily())
            family.samples.append(f"{new}{{{written}}} {value}\n")


def renamed(name: str) -> str:
    """`lmdeploy:x` becomes `lensmith_engine_lmdeploy_x`; the embedded engine's names are like that already."""
    return name if name.startswith(PREFIX) else PREFIX + name.replace(":", "_")


def family_of(name: str, families: dict[str, MetricFamily]) -> str:
    """The name in the comments before a sample: a histogram's is its samples' without the end."""
    if name in families:
        return name
    for suffix in SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in families:
            return name.removesuffix(suffix)
    return name


def write_family(name: str, family: MetricFamily) -> Iterator[str]:
    if family.samples:
        yield f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n"
        yield from family.samples


def escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
