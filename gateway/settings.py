"""The gateway's limits: one table that is at once the defaults, the command line's options and their help."""

from __future__ import annotations

from dataclasses import dataclass, field


def _setting(default: float, help: str) -> float:
    value: float = field(default=default, metadata={"help": help})
    return value


def _limit(default: int, help: str) -> int:
    value: int = field(default=default, metadata={"help": help})
    return value


@dataclass(frozen=True)
class Settings:
    """Every field is an option of `lensmith serve` under the same name (`--max-body-bytes`, ...)."""

    max_body_bytes: int = _limit(32 * 1024 * 1024, "Largest request body in bytes; a larger one is answered 413.")
    max_images: int = _limit(16, "Most images in one request.")
    max_image_pixels: int = _limit(64_000_000, "Most pixels (width x height) of one image.")
    max_request_pixels: int = _limit(128_000_000, "Most pixels of all images of one request together.")
    max_aspect_ratio: int = _limit(200, "Longest side of an image over its shortest.")
    image_pixels: int = _limit(0, "Larger images are shrunk to this many pixels; 0: to what the model looks at.")
    image_workers: int = _limit(2, "Processes that decode images.")
    image_seconds: float = _setting(10.0, "Longest time to decode an image, else 400.")
    max_bytes_in_flight: int = _limit(512 * 1024 * 1024, "Most bytes of request bodies held at once, else 503.")
    max_running: int = _limit(0, "Answers the engine works on at once; 0 takes what suits the engine.")
    max_waiting: int = _limit(256, "Requests that may wait for a place at the engine; one more is answered 503.")
    queue_timeout: float = _setting(60.0, "Longest wait for a place at the engine in seconds, else 503.")
    body_timeout: float = _setting(120.0, "Seconds a client has to send its whole body, else 408.")
    engine_timeout: float = _setting(600.0, "Seconds an engine may be silent before a request is answered 504.")
    sse_keepalive: float = _setting(15.0, "Seconds of silence in a stream after which a comment line is sent.")
    drain_seconds: float = _setting(30.0, "Seconds that running requests get to end when the gateway is told to stop.")
