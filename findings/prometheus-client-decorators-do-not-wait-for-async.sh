#!/usr/bin/env bash
# Expected: prometheus_client's decorators (@histogram.time(), @gauge.track_inprogress(),
# @counter.count_exceptions()) either work on an `async def` handler or refuse it. Most libraries with such
# decorators do one or the other.
#
# What happens: they accept it and watch only the call that creates the coroutine. A handler that takes 300 ms is
# recorded as a few microseconds, the gauge of requests in progress is back at 0 before the body starts, and an
# exception raised inside is never counted. A streaming handler (async generator) is recorded in the same way.
# Nothing is said. The context managers (`with histogram.time():`) inside the function are right.
#
# Versions: prometheus-client 0.26.0, Python 3.11.
#
# Why it matters: every serving layer for vision-language models in Python is asynchronous. The dashboard of a
# gateway that is instrumented like the README's first example shows a latency of zero, an empty queue and no
# errors, which looks like a healthy server and not like a broken metric; alerts on latency or concurrency cannot
# fire.
#
# Source: prometheus_client 0.26.0, context_managers.py: each decorator returns a plain function that calls the
# wrapped one inside a `with` block, so the block ends when the coroutine object is returned. The README shows them
# on ordinary functions only.
#
# Output seen:
#   awaited handler of 300 ms:  histogram says 0 ms (count 1), with the context manager about 300 ms
#   stream of 3 x 100 ms:       histogram says 0 ms (count 1)
#   requests in progress:       gauge says 0 inside the handler, with the context manager 1
#   exception in the handler:   counter says 0, with the context manager 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq prometheus-client==0.26.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import asyncio
import contextlib
import sys

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

registry = CollectorRegistry()


def histogram(name):
    return Histogram(name, "x", registry=registry)


decorated, streamed, managed = histogram("decorated"), histogram("streamed"), histogram("managed")
busy, busy_managed = Gauge("busy", "x", registry=registry), Gauge("busy_managed", "x", registry=registry)
failed, failed_managed = Counter("failed", "x", registry=registry), Counter("failed_managed", "x", registry=registry)
value = registry.get_sample_value


@decorated.time()
async def answer():
    await asyncio.sleep(0.3)


@streamed.time()
async def stream():
    for _ in range(3):
        await asyncio.sleep(0.1)
        yield "token"


@busy.track_inprogress()
async def watched():
    return value("busy")


@failed.count_exceptions()
async def broken():
    raise RuntimeError("no GPU")


async def main():
    await answer()
    async for _ in stream():
        pass
    with managed.time():
        await asyncio.sleep(0.3)
    inside = await watched()
    with busy_managed.track_inprogress():
        inside_managed = value("busy_managed")
    with contextlib.suppress(RuntimeError):
        await broken()
    with contextlib.suppress(RuntimeError), failed_managed.count_exceptions():
        raise RuntimeError("no GPU")
    return inside, inside_managed


inside, inside_managed = asyncio.run(main())
took, streaming, real = (value(f"{name}_sum") for name in ("decorated", "streamed", "managed"))
counts = [value("decorated_count"), value("streamed_count")]
errors = [value("failed_total"), value("failed_managed_total")]
if not (counts == [1, 1] and took < 0.1 and streaming < 0.1 and real >= 0.29):
    sys.exit(f"The behaviour has changed: the decorators measure {took:.3f} s and {streaming:.3f} s, counts {counts}.")
if [inside, inside_managed] != [0, 1] or errors != [0, 1]:
    sys.exit(f"The behaviour has changed: in progress {inside}, exceptions {errors[0]} with the decorators.")
manager = "with the context manager"
print(f"awaited handler of 300 ms:  histogram says {1000 * took:.0f} ms (count 1), {manager} about 300 ms")
print(f"stream of 3 x 100 ms:       histogram says {1000 * streaming:.0f} ms (count 1)")
print(f"requests in progress:       gauge says {inside:.0f} inside the handler, {manager} {inside_managed:.0f}")
print(f"exception in the handler:   counter says {errors[0]:.0f}, {manager} {errors[1]:.0f}")
PY
