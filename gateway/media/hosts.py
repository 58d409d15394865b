"""Where images may be fetched from: hosts that the operator listed, at addresses that the whole Internet can reach."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway.media.headers import BadImage

# Stricter than RFC 3986: no user, no brackets, no empty port, nothing that two parsers could read in two ways. The
# path and the query are sent as they are, because signed URLs must not change.
HTTP_URL = re.compile(
    r"https?://[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?::[0-9]{1,5})?(?:[/?][!-\[\]-~]*)?", re.ASCII | re.IGNORECASE
)
MAX_URL = 8192
DEFAULT_PORTS = (80, 443)

# Ranges beyond those that `ipaddress` calls private, in all Python versions: they lead to a machine of ours, or wrap
# an IPv4 address that does. https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-special-registry.
NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata service is 100.100.100.200
        "168.63.129.16/32",  # Azure's host service, on an address that looks public
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service is 192.0.0.192
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # protocol assignments, Teredo among them
        "2002::/16",  # 6to4
    )
]
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all else is mapped, NAT64, local, multicast or unassigned


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, and wraps no other address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.version == 6 and parsed not in GLOBAL_UNICAST:
        return False
    return parsed.is_global and not parsed.is_multicast and not any(parsed in network for network in NOT_PUBLIC)


class ImageHosts:
    """The hosts that images may be fetched from: `a.example`, `.a.example` (all hosts under it), `a.example:8443`."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries = frozenset(entries)

    def check(self, text: str) -> URL:
        """The URL in `text`: the very object to connect with, so that nobody parses it a second time.

        Raises BadImage if it isn't http(s), isn't plainly written, or isn't at a listed host and port.
        """
        if len(text) > MAX_URL:
            raise BadImage(f"has a URL of more than {MAX_URL} characters")
        if HTTP_URL.fullmatch(text) is None:
            raise BadImage("is neither a data: URI nor a plain http(s) URL with a host name, without a user")
        try:
            url = URL(text, encoded=True)
            host, port = (url.host or "").lower(), url.port
        except ValueError:
            raise BadImage("has a URL that cannot be read") from None
        suffixes = [host, *(host[index:] for index, letter in enumerate(host) if letter == "." and index)]
        names = suffixes if port in DEFAULT_PORTS else [f"{suffix}:{port}" for suffix in suffixes]
        if self._entries.isdisjoint(names):
            raise BadImage("is at a host that this server does not fetch images from")
        return url


class PublicResolver(AbstractResolver):
    """Resolves a host once; the connection goes to the addresses that were checked here.

    Raises BadImage when only one of them isn't public: an honest host has no such address.
    """

    def __init__(self, resolver: AbstractResolver | None = None, allowed: Callable[[str], bool] = is_public) -> None:
        self._resolver = resolver or ThreadedResolver()
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await self._resolver.resolve(host, port, family)
        if not all(self._allowed(result["host"]) for result in addresses):
            raise BadImage("is at a host without a public address")
        return addresses

    async def close(self) -> None:
        await self._resolver.close()
