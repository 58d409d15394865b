"""Signed session cookies and the tokens against forged requests that belong to them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

MAX_AGE = 30 * 24 * 3600  # seconds


class Sessions:
    """A session is the text holder.issued.nonce.signature; nothing of it is kept here."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock

    def issue(self, holder: str) -> str:
        text = f"{holder}.{int(self._clock())}.{secrets.token_urlsafe(16)}"
        return f"{text}.{self._sign('session', text)}"

    def fixed(self, holder: str) -> str:
        """A session of which there is only one."""
        return f"{holder}.{self._sign('session', holder)}"

    def holder(self, session: str) -> str | None:
        """Whose session this is; None if it is not one of ours or too old."""
        text, _, signature = session.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", text).encode()):
            return None
        holder, issued, _ = text.split(".")
        return holder if self._clock() - int(issued) < MAX_AGE else None

    def csrf_token(self, session: str) -> str:
        return self._sign("csrf", session)

    def csrf_is_good(self, session: str, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.csrf_token(session).encode())

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose} {text}".encode(), hashlib.sha256).hexdigest()
