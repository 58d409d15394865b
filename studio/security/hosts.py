"""The Host header: a name that is not this server's is another site's page that made its name lead here."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable


class Hosts:
    """Names under which the studio may be asked: any IP address (whose owner no other site can be), localhost, the
    machine's own names, and those of `--allow-host`."""

    def __init__(self, allowed: Iterable[str] | None = ()) -> None:
        """allowed: None allows every name, for where a login keeps out who came by another name."""
        self._every = allowed is None
        own = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
        self._names = own | {name.lower() for name in allowed or ()}

    def allows(self, header: str) -> bool:
        name = host_name(header)
        if name is None:
            return False
        if self._every or name in self._names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def host_name(header: str) -> str | None:
    """The name in a Host header, without its port; None if it is not one."""
    if header.startswith("["):
        name, closed, rest = header[1:].partition("]")
        return name.lower() if closed and (not rest or rest[0] == ":") else None
    name, _, port = header.partition(":")
    return name.lower().rstrip(".") if name and (not port or port.isdigit()) else None
