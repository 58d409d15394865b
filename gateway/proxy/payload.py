"""The bytes that an engine gets for a request: the checked body with the engine's name for the model and its images."""

from __future__ import annotations

import orjson

from gateway.api.chat import EngineRequest
from gateway.runtime.models import Model
from gateway.streaming.normalise import estimated_tokens


class Payload:
    """What an engine gets.

    Written anew, never passed on as it came: what the engine reads is what was checked, without duplicate keys.
    """

    def __init__(self, request: EngineRequest, model: Model) -> None:
        body = request.body
        if request.stream:
            # To count tokens; the relay takes the usage out again if the client didn't ask for it.
            options = body.get("stream_options") or {}
            body["stream_options"] = {**options, "include_usage": True}
        self.affinity = model.affinity(body, request.images)
        self._model: str = body.pop("model")
        self._written = orjson.dumps({"model": self._model, **body})
        # For engines that do not count: an image is taken for nothing, for its data says little of its tokens.
        self.prompt_tokens = estimated_tokens(len(self._written) - sum(len(image.url) for image in request.images))
        body.clear()  # the images are held once, not twice, while the request waits
        request.images.clear()

    def named(self, model: str) -> bytes:
        """For an engine that knows the model by this name."""
        if model != self._model:
            old, new = (orjson.dumps({"model": name})[:-1] for name in (self._model, model))
            self._model, self._written = model, new + self._written[len(old) :]
        return self._written
