"""Who may use the studio: the holder of the printed link, of the password, or of an API key; or everybody."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import StudioError

if TYPE_CHECKING:
    from gateway.tenants.keys import KeyRing


class Access(ABC):
    """kind: what the login page asks for: "token", "password", "key" or "none"."""

    kind: str

    @abstractmethod
    def admit(self, secret: str) -> str | None:
        """Whether a login with this secret is good: the holder, to be kept in the session; None if it is not."""

    def holds(self, holder: str) -> bool:
        """Whether a session of this holder is good still."""
        return True


class TokenAccess(Access):
    """A token that lets one browser in; then there is a new one."""

    kind = "token"

    def __init__(self, announce: Callable[[str], None] = lambda token: None) -> None:
        """announce: called with each token that follows a used one."""
        self.token = secrets.token_urlsafe(24)
        self._announce = announce

    def admit(self, secret: str) -> str | None:
        if not _equal(secret, self.token):
            return None
        self.token = secrets.token_urlsafe(24)
        self._announce(self.token)
        return "link"


class PasswordAccess(Access):
    """The password of a file's first line. Sessions end when it is changed."""

    kind = "password"

    def __init__(self, file: Path) -> None:
        """Raises StudioError if the file has none."""
        try:
            password = file.read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise StudioError(f"The password file {file} cannot be read: {reason}.") from None
        if len(password) < 8:
            raise StudioError(f"The first line of {file} must be a password of at least 8 characters.")
        self._password = password
        self._holder = hashlib.sha256(b"studio " + password.encode()).hexdigest()[:16]

    def admit(self, secret: str) -> str | None:
        return self._holder if _equal(secret, self._password) else None

    def holds(self, holder: str) -> bool:
        return holder == self._holder


class KeyAccess(Access):
    """The gateway's API keys (`lensmith keys`), but for those that are limited to some models: they are for clients.

    A session ends when its key is revoked or the studio restarts.
    """

    kind = "key"

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._keys: dict[str, str] = {}

    def admit(self, secret: str) -> str | None:
        if not self._opens(secret):
            return None
        holder = secrets.token_hex(8)
        self._keys[holder] = secret
        return holder

    def holds(self, holder: str) -> bool:
        secret = self._keys.get(holder)
        return secret is not None and self._opens(secret)

    def _opens(self, secret: str) -> bool:
        tenant = self._ring.find(secret)
        return tenant is not None and not tenant.key.models


class OpenAccess(Access):
    """Everybody who reaches the port."""

    kind = "none"

    def admit(self, secret: str) -> str | None:
        return "anybody"


def _equal(one: str, other: str) -> bool:
    """Compared in a time that does not depend on the content."""
    return hmac.compare_digest(hashlib.sha256(one.encode()).digest(), hashlib.sha256(other.encode()).digest())
