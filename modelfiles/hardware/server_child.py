"""A server as a child process: started, waited for, and ended with what uses it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from modelfiles.hardware.python_child import die_with_parent

START_SECONDS = 900
LAST_BYTES = 4000


class ServerChildError(Exception):
    """A child that did not start, or ended by itself: the reason in a sentence."""


class ServerChild:
    """A running child. log: the file that both its outputs go to."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], name: str) -> None:
        self.process, self.name = process, name
        self._log = log

    def check(self) -> None:
        """Raises ServerChildError if it has ended."""
        if self.process.poll() is not None:
            raise ServerChildError(f"The {self.name} engine has ended: {self.exit_reason()}")

    def exit_reason(self) -> str:
        """The last message of its log, whose lines may be JSON; of those, only what has a message is one."""
        size = os.fstat(self._log.fileno()).st_size
        tail = os.pread(self._log.fileno(), LAST_BYTES, max(0, size - LAST_BYTES))
        lines = tail.decode("utf-8", "replace").strip().splitlines()
        return next(filter(None, map(_message, reversed(lines))), "it said nothing")

    def wait_until_ready(self, health: str) -> None:
        """Until `health`, a URL, answers 200. Raises ServerChildError."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerChildError(f"The {self.name} engine did not start: {self.exit_reason()}")
            try:
                with urllib.request.urlopen(health, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise ServerChildError(f"The {self.name} engine was not ready after {START_SECONDS} s.")


def _message(line: str) -> str:
    """What a line of a log says; empty for a record without a message, such as that of a request."""
    try:
        record = json.loads(line)
    except ValueError:
        return line.strip()
    return str(record.get("message", "")) if isinstance(record, dict) else line


@contextmanager
def server_child(command: Sequence[str], health: str, name: str, own_session: bool = False) -> Iterator[ServerChild]:
    """Starts a server, waits until `health`, a URL, says that it is ready, and ends it; it ends with this process too.

    own_session: a Ctrl-C in the terminal does not reach it. Raises ServerChildError.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=own_session,
            preexec_fn=die_with_parent(os.getpid()),
        )
        try:
            child = ServerChild(process, log, name)
            child.wait_until_ready(health)
            yield child
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
