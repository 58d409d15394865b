"""Runs the application: binds its port first, serves until told to stop, leaves nothing behind."""

from __future__ import annotations

import errno
import logging
import math
import signal
import socket
import sys
from types import FrameType

import click
import uvicorn

from gateway import memory
from gateway.app import create_app
from gateway.connection import connection_class, drop_stalled
from gateway.keys import KeyRing
from gateway.metrics import Metrics
from gateway.models import Models
from gateway.settings import Settings
from gateway.tracing import tracing_from_environment


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to host and port, listening later. Raises ClickException with one sentence."""
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
            raise click.ClickException(f"Port {port} on {host} is in use; choose another one with --port.") from None
        raise click.ClickException(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    return bound


def run(
    models: Models, settings: Settings, metrics: Metrics, bound: socket.socket, ring: KeyRing | None = None
) -> None:
    """Serve until SIGINT or SIGTERM, then let running requests end and stop the engines.

    Raises ClickException when no engine ever became ready.
    """
    try:
        tracing = tracing_from_environment()
    except ModuleNotFoundError:
        raise click.ClickException(
            "An OTLP endpoint is configured; sending traces to it needs: pip install 'lensmith[otel]'"
        ) from None
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    config = uvicorn.Config(
        create_app(models, settings, metrics, tracing, ring),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        http=connection_class(settings),
        timeout_keep_alive=math.ceil(settings.keepalive_timeout),
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )
    server = uvicorn.Server(config)
    drop_stalled(bound, settings.stall_timeout)

    def leave_if_all_failed() -> None:
        server.should_exit = server.should_exit or models.failure is not None

    for engine in models.engines:
        engine.listen(leave_if_all_failed)
    # uvicorn handles both signals itself, stops, and then raises them again: without this the exit code would not be 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    host, port = bound.getsockname()[:2]
    click.echo(f"lensmith: Listening on http://{f'[{host}]' if ':' in host else host}:{port}/v1", err=True)
    memory.tune()
    server.run(sockets=[bound])
    if models.failure is not None:
        raise click.ClickException(models.failure)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
