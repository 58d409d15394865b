"""The workspace folder: one folder a thing, so that it can be copied, looked at and cleaned with ordinary tools."""

from __future__ import annotations

import secrets
from pathlib import Path

from modelfiles.folder.atomic_write import write_atomically
from studio.errors import StudioError
from studio.workspace.names import check_name

KINDS = ("datasets", "runs", "evaluations", "models", "gateways", "jobs")


class Workspace:
    """The folders datasets, runs, evaluations, models, gateways and jobs below one folder."""

    def __init__(self, folder: Path) -> None:
        """Raises StudioError if the folder cannot be made or written."""
        self.folder = folder.expanduser().resolve()
        try:
            for kind in KINDS:
                (self.folder / kind).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudioError("errors.workspace", folder=self.folder, reason=error.strerror) from None

    def names(self, kind: str) -> list[str]:
        """The names of one kind, newest first."""
        folders = [path for path in (self.folder / kind).iterdir() if path.is_dir() and not path.name.startswith(".")]
        return [path.name for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)]

    def path(self, kind: str, name: str) -> Path:
        """The folder of a thing, whether or not it exists. Raises StudioError for a name that cannot be one."""
        return self.folder / kind / check_name(name)

    def existing(self, kind: str, name: str) -> Path:
        """The folder of a thing. Raises StudioError (404) if there is none."""
        path = self.path(kind, name)
        if not path.is_dir():
            raise StudioError("errors.missing", status=404, name=name)
        return path

    def create(self, kind: str, name: str) -> Path:
        """A new folder for a thing; of two that ask at once, one gets it. Raises StudioError (409) if it exists."""
        path = self.path(kind, name)
        try:
            path.mkdir()
        except FileExistsError:
            raise StudioError("errors.exists", status=409, name=name) from None
        except OSError as error:
            raise StudioError("errors.disk", status=507, path=path, reason=error.strerror) from None
        return path

    def free_name(self, kind: str, wanted: str) -> str:
        """The wanted name, or with the first free number behind it."""
        taken = set(self.names(kind))
        candidates = (wanted if number == 1 else f"{wanted}-{number}" for number in range(1, len(taken) + 2))
        return next(name for name in candidates if name not in taken)

    def secret(self) -> bytes:
        """32 random bytes that are this workspace's, made once: sessions outlive a restart of the studio."""
        path = self.folder / ".secret"
        if not path.is_file():
            write_atomically(path, secrets.token_bytes(32), mode=0o600)
        return path.read_bytes()
