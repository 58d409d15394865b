"""The gateway's settings: one table that is at once the defaults, the command line's options and the documentation.

`python -m gateway.config.settings` prints the table of docs/gateway.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# `a.example`, `.a.example` or `a.example:8443`. One letter in the last label: no IPv4 address, however it is written.
HOST = re.compile(r"\.?(?:[a-z0-9_-]+\.)*[a-z0-9_-]*[a-z][a-z0-9_-]*(?::[0-9]{1,5})?")
# `https://a.example` or `http://localhost:5173`, as browsers send it; `*` is every one.
ORIGIN = re.compile(r"\*|https?://[a-z0-9._-]+(?::[0-9]{1,5})?")


def _setting(default: Any, help: str, minimum: float = 0, pattern: re.Pattern[str] = HOST) -> Any:
    """`minimum`: the smallest value allowed (a time must be above 0). `pattern`: that of each entry of a list."""
    return dataclasses.field(default=default, metadata={"help": help, "minimum": minimum, "pattern": pattern})


@dataclass(frozen=True)
class Settings:
    """Every field is an option of `lensmith serve` under the same name (`--max-body-bytes`, ...)."""

    max_body_bytes: int = _setting(
        32 * 1024 * 1024, "Largest request body in bytes, fetched images included; a larger one is answered 413.", 1
    )
    max_images: int = _setting(16, "Most images in one request.", 1)
    max_image_pixels: int = _setting(64_000_000, "Most pixels (width x height) of one image.", 1)
    max_request_pixels: int = _setting(128_000_000, "Most pixels of all images of one request together.", 1)
    max_aspect_ratio: int = _setting(200, "Longest side of an image over its shortest.", 1)
    image_pixels: int = _setting(0, "Larger images are shrunk to this many pixels; 0: to what the model looks at.")
    image_workers: int = _setting(0, "Processes that decode images; 0: the cores that engines and gateway leave.")
    image_seconds: float = _setting(10.0, "Longest time to decode an image, else 400.")
    image_hosts: tuple[str, ...] = _setting(
        (),
        "Hosts that images given by http(s) URL are fetched from, as in a.example,.b.example: a name, a name with a "
        "dot before it for all hosts under it, with :8443 behind it for a port other than 80 and 443. Without any, "
        "nothing is fetched.",
    )
    max_download_bytes: int = _setting(16 * 1024 * 1024, "Largest file that is fetched for an image, in bytes.", 1)
    max_redirects: int = _setting(3, "Most redirects on the way to an image that is fetched.")
    download_timeout: float = _setting(10.0, "Longest time to fetch an image in seconds, else 400.")
    max_bytes_in_flight: int = _setting(
        512 * 1024 * 1024, "Most bytes of request bodies and fetched images held at once, else 503.", 1
    )
    max_running: int = _setting(0, "Answers the engine works on at once; 0 takes what suits the engine.")
    max_waiting: int = _setting(
        256, "Requests that may wait for a place at the engine, or images for a worker; one more is answered 503.", 1
    )
    queue_timeout: float = _setting(60.0, "Longest wait for a place at the engine in seconds, else 503.")
    header_timeout: float = _setting(10.0, "Seconds a client has to send a request's head, else 408.")
    body_timeout: float = _setting(120.0, "Seconds a client has to send its whole body, else 408.")
    stall_timeout: float = _setting(
        60.0, "Seconds after which a client is disconnected that takes none of its answer, or whose machine is gone."
    )
    keepalive_timeout: float = _setting(
        75.0, "Seconds a connection is kept open for the next request; behind a proxy, longer than the proxy keeps it."
    )
    engine_timeout: float = _setting(600.0, "Seconds an engine may be silent before a request is answered 504.")
    cors_origins: tuple[str, ...] = _setting(
        (),
        "Origins whose web pages may call the API, as in https://a.example,http://localhost:5173; * is every one.",
        pattern=ORIGIN,
    )
    sse_keepalive: float = _setting(15.0, "Seconds of silence in a stream after which a comment line is sent.")
    drain_pause: int = _setting(
        0,
        "Seconds after the signal to stop in which new requests are still served and only /ready says no, for "
        "balancers that learn of it late.",
    )
    drain_seconds: float = _setting(30.0, "Seconds that running requests get to end when the gateway is told to stop.")

    def __post_init__(self) -> None:
        """Raises ValueError with one sentence that names the setting."""
        for setting in dataclasses.fields(self):
            wanted = setting_problem(setting, getattr(self, setting.name))
            if wanted:
                raise ValueError(f"{setting.name} must be {wanted}.")


def setting_problem(setting: dataclasses.Field[Any], value: object) -> str:
    """What the value must be instead; empty if it is right."""
    minimum = setting.metadata["minimum"]
    if isinstance(setting.default, tuple):
        pattern = setting.metadata["pattern"]
        if isinstance(value, tuple) and all(isinstance(entry, str) and pattern.fullmatch(entry) for entry in value):
            return ""
        if pattern is ORIGIN:
            return "a list of origins, such as https://app.example or http://localhost:5173, or *"
        return "a list of host names in lower case, such as images.example, .cdn.example or images.example:8443"
    if isinstance(setting.default, int):
        right = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        return "" if right else f"an integer of at least {minimum}"
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return "" if right else "a number above 0"


def documentation() -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| option | default | |"
    yield "|---|---|---|"
    for setting in dataclasses.fields(Settings):
        default = setting.default if setting.default != () else "none"
        yield f"| `--{setting.name.replace('_', '-')}` | {default} | {setting.metadata['help']} |"


if __name__ == "__main__":
    print("\n".join(documentation()))
