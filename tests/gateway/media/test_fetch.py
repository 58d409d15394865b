"""Images by http(s) URL: only from listed hosts at public addresses, within limits, and nobody is fooled on the way."""

from __future__ import annotations

import asyncio
import base64
import gzip
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.config.settings import Settings
from gateway.errors import ApiError
from gateway.media.checks import ImagePart, write_data_uri
from gateway.media.fetch import ImageFetcher
from gateway.media.headers import MEDIA_TYPES, BadImage
from gateway.media.hosts import ImageHosts, PublicResolver, is_public
from tests.support.gateway.images import image_file

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


PNG = image_file("PNG")


class Names(AbstractResolver):
    """Host names and their addresses: each question takes one answer from the front, the last one stays."""

    def __init__(self, **hosts: list[list[str]]) -> None:
        self.hosts = {name.replace("_", "."): list(answers) for name, answers in hosts.items()}
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        host = host.lower()
        self.asked.append(host)
        if host not in self.hosts:
            raise OSError("no such host")
        answers = self.hosts[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        fields = {"hostname": host, "port": port, "family": family, "proto": 0, "flags": 0}
        return [{**fields, "host": address} for address in addresses]

    async def close(self) -> None:
        pass


class Site:
    """A web server that stands in for the Internet: here, and only here, 127.0.0.1 counts as public."""

    def __init__(self, port: int, names: Names, settings: Settings) -> None:
        self.port = port
        self.names = names
        self.requests: list[web.Request] = []
        self.settings = settings
        self.held = 0

    def hold(self, size: int) -> None:
        self.held += size

    async def fetch(self, *urls: str) -> list[str]:
        """The URIs that took the place of these; `PORT` stands for the server's."""
        resolver = PublicResolver(self.names, allowed=lambda address: address == "127.0.0.1")
        fetcher = ImageFetcher(self.settings, resolver)
        parts = [ImagePart(f"messages[{at}]", {"url": self.at(url)}) for at, url in enumerate(urls)]
        try:
            remote = fetcher.remote(parts)
            for part, file in zip(remote, await fetcher.fetch(remote, self.hold), strict=True):
                part.image["url"] = write_data_uri(MEDIA_TYPES[file.header.format], file.data)
        finally:
            await fetcher.close()
        return [part.url for part in parts]

    def at(self, url: str) -> str:
        return url.replace("PORT", str(self.port))


HOME = "http://images.test:PORT/"


@asynccontextmanager
async def site(handler: Handler, **settings: Any) -> AsyncIterator[Site]:
    names = Names(
        images_test=[["127.0.0.1"]],
        cdn_test=[["127.0.0.1"]],
        inside_test=[["10.0.0.7"]],
        mixed_test=[["127.0.0.1", "192.168.1.1"]],
        rebinding_test=[["127.0.0.1"], ["10.0.0.7"]],
    )

    async def seen(request: web.Request) -> web.StreamResponse:
        here.requests.append(request)
        return await handler(request)

    server = web.Server(seen, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    hosts = tuple(f"{host}:{port}" for host in ("images.test", "cdn.test", "inside.test", "mixed.test"))
    here = Site(port, names, Settings(image_hosts=(*hosts, f"rebinding.test:{port}"), **settings))
    try:
        yield here
    finally:
        await runner.cleanup()


async def picture(request: web.Request) -> web.StreamResponse:
    return web.Response(body=PNG, content_type="text/html")


def refused(handler: Handler, url: str = HOME, **settings: Any) -> tuple[str, Site]:
    """How fetching this URL is refused, and the server that was asked."""

    async def main() -> tuple[str, Site]:
        async with site(handler, **settings) as here:
            with pytest.raises(ApiError) as caught:
                await here.fetch(url)
            assert caught.value.status == 400
            assert (caught.value.param, caught.value.code) == ("messages[0]", "invalid_image")
            return caught.value.message.removeprefix("The image at messages[0] "), here

    return asyncio.run(main())


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_an_image_takes_the_place_of_its_url_and_says_itself_what_it_is(format: str) -> None:
    body = image_file(format)

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="text/html", headers={"set-cookie": "a=b"})

    async def main() -> None:
        async with site(handler) as here:
            url = HOME + "a%2Fb?x=%2F+&y=c%3D"
            uris = await here.fetch(url, url, "data:image/png;base64,AAAA")
            expected = f"data:image/{format.lower()};base64," + base64.b64encode(body).decode()
            assert uris == [expected, expected, "data:image/png;base64,AAAA"]
            assert here.held == 2 * len(base64.b64encode(body)), "all that is kept is counted"
            for request in here.requests:
                assert request.raw_path == "/a%2Fb?x=%2F+&y=c%3D", "signed URLs are sent as they are"
                assert request.headers["host"] == f"images.test:{here.port}"
                assert not {"cookie", "authorization", "referer"} & {name.lower() for name in request.headers}

    asyncio.run(main())


@pytest.mark.parametrize("location", ["/there", "//cdn.test:PORT/there", "http://CDN.test:PORT/there", "there"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(status: int, location: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/there":
            return web.Response(body=PNG)
        return web.Response(status=status, headers={"location": here.at(location)})

    async def main() -> None:
        nonlocal here
        async with site(handler) as here:
            (uri,) = await here.fetch(HOME)
            assert uri.startswith("data:image/png;base64,")

    here: Site
    asyncio.run(main())


@pytest.mark.parametrize(
    "location",
    [
        "http://elsewhere.test/",
        "http://images.test/",  # another port
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]:PORT/",
        "http://127.0.0.1:PORT/",
        "http://user@images.test:PORT/",
        "http://images.test:PORT\\@elsewhere.test/",
        "file:///etc/passwd",
        "ftp://images.test:PORT/",
        "data:image/png;base64,AAAA",
        "http://[",
        "http://images.test:99999/",
    ],
)
def test_a_redirect_is_checked_like_the_first_url(location: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"location": location.replace("PORT", str(request.url.port))})

    _, here = refused(handler)
    assert len(here.requests) == 1
    assert set(here.names.asked) == {"images.test"}


def test_a_redirect_to_a_listed_host_inside_is_refused() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"location": f"http://inside.test:{request.url.port}/"})

    says, here = refused(handler)
    assert says == "is at a host without a public address."
    assert len(here.requests) == 1


@pytest.mark.parametrize("most", [0, 2])
def test_redirects_come_to_an_end(most: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"location": "/"})

    says, here = refused(handler, max_redirects=most)
    assert says == f"could not be fetched: more than {most} redirects."
    assert len(here.requests) == most + 1


@pytest.mark.parametrize("host", ["inside.test", "mixed.test"])
def test_a_host_inside_is_never_connected_to(host: str) -> None:
    says, here = refused(picture, f"http://{host}:PORT/")
    assert says == "is at a host without a public address."
    assert not here.requests


def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    async def main() -> None:
        async with site(picture) as here:
            await here.fetch("http://rebinding.test:PORT/")
            assert here.names.asked == ["rebinding.test"], "asked once: a second answer could be another"
            with pytest.raises(ApiError, match="without a public address"):
                await here.fetch("http://rebinding.test:PORT/")

    asyncio.run(main())


@pytest.mark.parametrize("length", [True, False])
def test_a_file_that_is_too_large_is_not_read_to_its_end(length: bool) -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse()
        if length:
            answer.content_length = 50_000_000
        await answer.prepare(request)
        for _ in range(50):
            await answer.write(bytes(1_000_000))
            sent += 1_000_000
        return answer

    says, here = refused(handler, max_download_bytes=100_000)
    assert says == "is larger than 100000 bytes, the limit for an image that is fetched."
    assert here.held <= 100_000
    assert sent < 20_000_000, "what the network's buffers hold"


@pytest.mark.parametrize("path", ["silent", "drip", "hops"])
def test_a_slow_server_is_given_up(path: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if path == "silent":
            await asyncio.sleep(60)
        if path == "hops":
            await asyncio.sleep(0.15)
            return web.Response(status=302, headers={"location": "/"})
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x")
            await asyncio.sleep(0.01)

    says, _ = refused(handler, download_timeout=0.4, max_redirects=20)
    assert says == "could not be fetched within 0.4 s."


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "could not be fetched: its server answered HTTP 404."),
        ("range", "could not be fetched: its server answered HTTP 206."),
        ("reset", "could not be fetched: its server cannot be reached or broke off."),
        ("half", "could not be fetched: its server cannot be reached or broke off."),
        ("page", "is not a PNG, JPEG, WebP or GIF file."),
        ("svg", "is not a PNG, JPEG, WebP or GIF file."),
        ("gzip", "is not a PNG, JPEG, WebP or GIF file."),
        ("empty", "is not a PNG, JPEG, WebP or GIF file."),
        ("cut", "is cut short."),
        ("nowhere", "could not be fetched: its server redirects to nowhere."),
    ],
)
def test_what_is_no_image_is_refused_in_our_words(kind: str, expected: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        if kind == "reset":
            request.transport.abort()
        if kind == "half":
            answer = web.StreamResponse()
            answer.content_length = len(PNG)
            await answer.prepare(request)
            await answer.write(PNG[:50])
            request.transport.close()
            return answer
        headers = {"content-encoding": "gzip"} if kind == "gzip" else {}
        bodies = {
            "page": b"<html>",
            "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "gzip": gzip.compress(PNG),
            "empty": b"",
            "cut": PNG[:-40],
        }
        statuses = {"missing": 404, "range": 206, "nowhere": 302}
        return web.Response(status=statuses.get(kind, 200), body=bodies.get(kind, PNG), headers=headers)

    assert refused(handler)[0] == expected


def test_a_host_that_does_not_exist_or_does_not_listen() -> None:
    async def main() -> None:
        async with site(picture) as here:
            here.names.hosts.pop("cdn.test")
            with pytest.raises(ApiError, match="cannot be reached"):
                await here.fetch("http://cdn.test:PORT/")
        with pytest.raises(ApiError, match="cannot be reached"):
            await here.fetch(HOME)

    asyncio.run(main())


def test_one_bad_image_ends_the_fetching_of_the_others() -> None:
    gone = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/bad":
            return web.Response(status=404)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            gone.set()
            raise
        return web.Response()

    async def main() -> None:
        async with site(handler) as here:
            with pytest.raises(ApiError, match="messages\\[1\\] could not be fetched: its server answered HTTP 404"):
                await here.fetch(HOME, HOME + "bad")
            await asyncio.wait_for(gone.wait(), 30)

    asyncio.run(main())


def test_a_tls_connection_asks_for_the_host_by_name_and_wants_its_certificate() -> None:
    names: list[str | None] = []

    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # it has no certificate at all
        context.sni_callback = lambda connection, name, context: names.append(name)
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        settings = Settings(image_hosts=(f"images.test:{port}",))
        here = Site(port, Names(images_test=[["127.0.0.1"]]), settings)
        with pytest.raises(ApiError, match="cannot be reached"):
            await here.fetch("https://images.test:PORT/")
        server.close()

    asyncio.run(main())
    assert names == ["images.test"]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254"),
        *("0.0.0.0", "0.1.2.3", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1"),
        *("198.51.100.1", "203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
        *("192.88.99.1", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:8.8.8.8"),
        *("64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::1", "2001::1"),
        *("2001:db8::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "100::1"),
        *("4000::1", "2001:20::1", "", "localhost", "127.1", "2130706433", "0x7f.0.0.1", "017700000001", "8.8.8.8 "),
    ],
)
def test_an_address_inside(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450:4001::200e"])
def test_a_public_address(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:0:0", "64:ff9b::", "::", "64:ff9b:1::", "::ffff:0:0:0"]))
def test_no_ipv6_address_that_wraps_an_ipv4_address_is_public(wrapped: ipaddress.IPv4Address, prefix: str) -> None:
    assert not is_public(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(wrapped))))
    assert not is_public(str(ipaddress.IPv6Address(0x2002 << 112 | int(wrapped) << 80 | 1)))


@given(st.ip_addresses(network="0.0.0.0/0") | st.ip_addresses(network="::/0"))
def test_nothing_special_is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    special = (
        *(address.is_private, address.is_loopback, address.is_link_local, address.is_multicast),
        *(address.is_reserved, address.is_unspecified, not address.is_global),
    )
    assert not (is_public(str(address)) and any(special))


HOSTS = ImageHosts([".images.test", "cdn.test", "cdn.test:8443"])
PIECES = st.sampled_from(
    [
        *("http://", "https://", "HTTP://", "http:/", "http:", "//", "/", "\\", "@", ":", "#", "?", "%", "%40", "%2e"),
        *("images.test", "a.images.test", "cdn.test", "evil.test", "127.0.0.1", "[::1]", "0x7f.1", "2130706433", "a"),
        *("80", ":80", ":443", ":8443", ":22", ":0", ":", ".", "..", " ", "\t", "\n", "\r", "\0", "[", "]", "?x=", "é"),
        *("user:pw@", "file://", "ftp://", "data:", "cat.png", ";", "&", "'", '"', "<", "\u3002", "\uff20", "\u00ad"),
    ]
)


@given(st.lists(PIECES, max_size=9).map("".join) | st.text(max_size=40))
@example("http://cdn.test\\@evil.test/")
@example("http://cdn.test#@evil.test/")
@example("http://cdn.test:80@evil.test/")
@example("http://cdn.test:8443/ok?x=http://evil.test@")
@example("http://xcdn.test/")
@example("http://cdn.test.evil.test/")
@example("http://xximages.test/")
@example("http://images.test/")
@example("http://cdn.test./")
def test_only_listed_hosts_get_through_whatever_the_url(text: str) -> None:
    try:
        url = HOSTS.check(text)
    except BadImage:
        return
    assert url.scheme in ("http", "https")
    assert url.user is None
    assert url.password is None
    host = (url.host or "").lower()
    assert host == "cdn.test" or host.endswith(".images.test")
    assert url.port in (80, 443) or (host, url.port) == ("cdn.test", 8443)
    other = urlsplit(text)  # another parser, as engines and proxies have, reads the same
    assert (other.hostname, other.username) == (host, None)
    assert (other.port or {"http": 80, "https": 443}[other.scheme]) == url.port


@pytest.mark.parametrize(
    "entry",
    ["127.0.0.1", "10.0.0.1:80", "[::1]", "https://a.example", "a.example/", "A.example", "*.example", "", "a.", "a:b"],
)
def test_a_setting_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="image_hosts must be a list of host names"):
        Settings(image_hosts=(entry,))
