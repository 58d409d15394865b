"""Runs the application: binds its port first, serves until told to stop, leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Sequence
from types import FrameType

import click
import uvicorn
from starlette.applications import Starlette

from gateway import allocator
from gateway.app import create_app
from gateway.http.connection import connection_class, drop_stalled
from gateway.runtime.service import Service
from gateway.telemetry.logs import configure_logging
from gateway.telemetry.tracing import Tracing

LOG = logging.getLogger("lensmith.server")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def tracing_from_environment() -> Tracing:
    """Spans are sent if an OTLP endpoint is configured. Raises ModuleNotFoundError if the extra is missing then."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or not any(os.environ.get(name) for name in ENDPOINTS):
        return Tracing()
    from gateway.telemetry.otel import OtelTracing

    return OtelTracing()


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket that listens at host and port. Raises ClickException with one sentence that names the option."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise click.ClickException(f"The host {host} is not known; give --host an address of this machine.") from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(2048)  # here, because two sockets may bind the same port and only one may listen
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise click.ClickException(f"Port {port} on {host} is in use; choose another one with {option}.") from None
        raise click.ClickException(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    return bound


def bind_shared(bound: socket.socket, count: int) -> list[socket.socket]:
    """`count` sockets at the address of `bound`, which is closed: the kernel spreads connections over them."""
    address = bound.getsockname()
    family, kind, protocol = bound.family, bound.type, bound.proto
    bound.close()  # it was there to find out that nobody else has the port
    shared = []
    for _ in range(count):
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.listen(2048)
        shared.append(listening)
    return shared


def address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class GatewayServer(uvicorn.Server):
    """Drains on the first SIGINT or SIGTERM: it goes on listening and refuses new requests until those there are ended.

    Where a pause is set, it goes on as before for so long and only says that it is not ready. The second signal cuts
    the rest short.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drains_at = self._drained_at = math.inf
        self._reload_wanted = False
        self._reloading: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.leaving or not self.started:
            super().handle_exit(sig, frame)
            return
        settings = self._service.gateway.settings
        self._service.leaving = True
        self._drains_at = time.monotonic() + settings.drain_pause
        self._drained_at = self._drains_at + settings.drain_seconds
        self._service.draining = not settings.drain_pause

    def on_drained(self, late: bool) -> None:
        """No request is left, or the time for them is over (`late`)."""
        self.should_exit = True

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        self._reload_wanted = True

    async def on_tick(self, counter: int) -> bool:
        service = self._service
        if time.monotonic() >= self._drains_at:
            service.draining = True
        if service.draining and (not service.requests or time.monotonic() >= self._drained_at):
            self.on_drained(late=bool(service.requests))
        if self._reload_wanted:
            self._reload_wanted = False
            self._reloading = asyncio.create_task(service.reload())
        return await super().on_tick(counter)


def make_server(
    service: Service,
    sockets: Sequence[socket.socket],
    management_port: int | None,
    studio: Starlette | None = None,
    kind: type[GatewayServer] = GatewayServer,
) -> GatewayServer:
    """The server, not running yet; the process is set up for it: logs, traces, signals, memory.

    Raises ClickException if traces are to be sent and cannot be.
    """
    try:
        service.tracing = tracing_from_environment()
    except ModuleNotFoundError:
        raise click.ClickException(
            "An OTLP endpoint is configured; sending traces to it needs: pip install 'lensmith[otel]'"
        ) from None
    configure_logging()
    config = uvicorn.Config(
        create_app(service, management_port, studio),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks for the client's address
        ws="none",
        http=connection_class(service.settings),
        timeout_keep_alive=math.ceil(service.settings.keepalive_timeout),
        timeout_graceful_shutdown=1,  # the time to drain is over by then
    )
    for listening in sockets:
        drop_stalled(listening, service.settings.stall_timeout)
    # uvicorn handles both signals itself, stops, and then raises them again: without this the exit code would not be 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    allocator.tune()
    return kind(config, service)


def run(
    service: Service,
    bound: socket.socket,
    management: socket.socket | None = None,
    reloads: bool = False,
    studio: Starlette | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let running requests end and stop the engines.

    `management`: what is for operators only is served there, and not at `bound`.
    `studio`: the application shown at /studio.
    `reloads`: SIGHUP loads the configuration again, instead of ending the process as a terminal that closes means it.

    Raises ClickException when no engine ever became ready.
    """
    sockets = [bound] if management is None else [bound, management]
    server = make_server(service, sockets, management.getsockname()[1] if management is not None else None, studio)
    service.on_failure = lambda: setattr(server, "should_exit", True)
    if reloads:
        signal.signal(signal.SIGHUP, server.handle_reload)
    announce(bound, management)
    server.run(sockets=sockets)
    if service.failure is not None:
        raise click.ClickException(service.failure)


def announce(bound: socket.socket, management: socket.socket | None) -> None:
    LOG.info("Listening on %s/v1", address(bound))
    if management is not None:
        LOG.info("Metrics and details at %s/metrics and /ready", address(management))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
