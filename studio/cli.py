"""`lensmith studio`."""

from __future__ import annotations

import socket
from pathlib import Path

import click
import uvicorn

from studio.app import make_app
from studio.errors import StudioError
from studio.security.access import Access, KeyAccess, OpenAccess, PasswordAccess, TokenAccess
from studio.web.i18n import sentence


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("lensmith-studio"),
    show_default=True,
    help="The workspace: data, runs, models and jobs.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes a free one.")
@click.option(
    "--password-file", type=click.Path(path_type=Path), help="Ask for the password in this file's first line."
)
@click.option("--keys", type=click.Path(path_type=Path), help="Ask for one of the gateway's API keys (lensmith keys).")
@click.option("--no-password", is_flag=True, help="Let in everybody who reaches the port.")
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="A name of this machine in browsers' addresses; repeatable."
)
def studio(
    folder: Path,
    host: str,
    port: int,
    password_file: Path | None,
    keys: Path | None,
    no_password: bool,
    allow_host: tuple[str, ...],
) -> None:
    """Open the studio: data, training, evaluation, chat and serving in the browser.

    It listens on this machine only, and lets in who has the printed link. Jobs go on when it is closed.
    """
    if sum(map(bool, (password_file, keys, no_password))) > 1:
        raise click.UsageError("Give one of --password-file, --keys and --no-password.")
    listening = _bind(host, port)
    address = listening.getsockname()
    local = address[0].startswith("127.") or address[0] == "::1"
    if not local and not (password_file or keys or no_password):
        raise click.UsageError(
            f"At {host} others can reach the studio: give --password-file FILE, --keys FILE, or --no-password."
        )
    shown = f"[{host}]" if ":" in host else host
    base = f"http://{shown}:{address[1]}/"

    def announce(token: str) -> None:
        click.echo(f"For another browser: {base}login?token={token}")

    try:
        access = _access(password_file, keys, no_password) or TokenAccess(announce)
        app = make_app(folder, access, [*allow_host, host])
    except StudioError as error:
        raise click.ClickException(sentence("en", error)) from None
    link = f"{base}login?token={access.token}" if isinstance(access, TokenAccess) else base
    click.echo(f"Lensmith studio, workspace {folder}: {link}")
    if isinstance(access, TokenAccess):
        click.echo("The link works once. Jobs go on when the studio is closed; Ctrl-C closes it.")
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=2, server_header=False, proxy_headers=False, ws="none"
    )
    uvicorn.Server(config).run([listening])


def _access(password_file: Path | None, keys: Path | None, no_password: bool) -> Access | None:
    """Raises StudioError."""
    if password_file is not None:
        return PasswordAccess(password_file)
    if keys is not None:
        from gateway.tenants.keys import KeyFileError, KeyRing

        try:
            return KeyAccess(KeyRing(keys))
        except KeyFileError as error:
            raise StudioError(str(error)) from None
    return OpenAccess() if no_password else None


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise click.ClickException(
            f"{host}:{port} cannot be listened at: {error.strerror}. Try another --port."
        ) from None
    return listening
