"""The studio inside a gateway, at /studio (`lensmith serve --studio DIR`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click
from fastapi import FastAPI

from gateway.tenants.keys import KeyRing
from studio.app import make_app
from studio.errors import StudioError
from studio.security.access import Access, KeyAccess, TokenAccess
from studio.web.i18n import sentence

LOG = logging.getLogger("lensmith.studio")


def mounted_studio(folder: Path, ring: KeyRing | None, address: tuple[Any, ...]) -> FastAPI:
    """The application for a gateway that listens at `address` (host, port) and asks for the keys of `ring`.

    Without keys it lets in who has the link that is printed, and refuses where others can reach the port. Raises
    ClickException.
    """
    host, port = address[:2]
    local = str(host).startswith("127.") or host == "::1"
    if ring is None and not local:
        raise click.UsageError("--studio needs --keys FILE where others can reach the port.")
    base = f"http://{f'[{host}]' if ':' in str(host) else host}:{port}/studio/"

    def announce(token: str) -> None:
        LOG.info("The studio, for one browser: %slogin?token=%s", base, token)

    access: Access = KeyAccess(ring) if ring is not None else TokenAccess(announce)
    try:
        app = make_app(folder, access, None if ring is not None else ())
    except StudioError as error:
        raise click.ClickException(sentence("en", error)) from None
    if isinstance(access, TokenAccess):
        announce(access.token)
    else:
        LOG.info("The studio is at %s", base)
    return app
