"""Log-probabilities of engines that spell tokens as their vocabulary does, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from gateway.streaming.token_bytes import token_bytes

Object = dict[str, Any]


class RawLogProbs:
    """Puts LMDeploy 0.18's log-probabilities into OpenAI's form.

    There tokens are spelled as in the vocabulary, and the token that was drawn is missing among its own alternatives,
    of which `top` were asked for.
    """

    def __init__(self, top: int, byte_level: bool) -> None:
        self._top = top
        self._byte_level = byte_level

    def apply(self, payload: Object) -> None:
        """Rewrite the log-probabilities of a whole completion or of a chunk, in place."""
        for choice in payload.get("choices") or []:
            for entry in (choice.get("logprobs") or {}).get("content") or []:
                drawn = self._readable(entry)
                others = [self._readable(other) for other in entry.get("top_logprobs") or []]
                best = sorted([drawn, *others], key=lambda found: -found["logprob"])[: self._top]
                entry.update(drawn, top_logprobs=best)

    def _readable(self, entry: Object) -> Object:
        data = token_bytes(entry["token"], self._byte_level)
        return {"token": data.decode("utf-8", "replace"), "logprob": entry["logprob"], "bytes": list(data)}
