"""The bytes that an engine gets for a request: the checked body with the engine's name for the model and its images."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from gateway.api.chat import EngineRequest
from gateway.media.headers import ImageHeader
from gateway.runtime.models import Model
from gateway.streaming.normalise import estimated_tokens

# An image costs about a token for so many pixels, as Qwen3-VL's do.
PIXELS_PER_TOKEN = 32 * 32


def image_tokens(images: Sequence[ImageHeader]) -> int:
    return sum(image.pixels // PIXELS_PER_TOKEN for image in images)


class Payload:
    """What an engine gets.

    Written anew, never passed on as it came: what the engine reads is what was checked, without duplicate keys.
    """

    def __init__(self, request: EngineRequest, model: Model, images: Sequence[ImageHeader] = ()) -> None:
        body = request.body
        if request.collects:
            body["stream"] = True
        if request.stream or request.collects:
            # To count tokens; the relay takes the usage out again if the client didn't ask for it.
            options = body.get("stream_options") or {}
            body["stream_options"] = {**options, "include_usage": True}
        self.affinity = model.affinity(body, request.images)
        self._model: str = body.pop("model")
        self._written = orjson.dumps({"model": self._model, **body})
        # For engines that do not count.
        text = len(self._written) - sum(len(image.url) for image in request.images)
        self.prompt_tokens = estimated_tokens(text) + image_tokens(images)
        body.clear()  # the images are held once, not twice, while the request waits
        request.images.clear()

    def named(self, model: str) -> bytes:
        """For an engine that knows the model by this name."""
        if model != self._model:
            old, new = (orjson.dumps({"model": name})[:-1] for name in (self._model, model))
            self._model, self._written = model, new + self._written[len(old) :]
        return self._written
