"""The `spire-server` program: one command, its standard output.

Gets a command prefix, which may lead into a container, and argument lists; no shell is ever in
between, and nothing is read or written in the container but by pipes. Raises `RegistrationError`.
What a command prints is given to the caller and to nobody else: it may be a join token.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from sidecar.core.registration.faults import failure, not_started, timed_out, too_long

# Of what went wrong only the beginning is looked at: the usage that Go prints is long.
_STDERR_LIMIT = 64 * 1024
# Tens of thousands of entries have less; a program that never stops must not take our memory.
_STDOUT_LIMIT = 64 * 1024 * 1024
_PIECE = 64 * 1024


@dataclass(slots=True)
class SpireServer:
    """How to run `spire-server` here; `looked` are the commands that were run to look."""

    prefix: tuple[str, ...]
    socket_path: str | None = None
    timeout_seconds: float = 30.0
    looked: list[tuple[str, ...]] = field(default_factory=list)

    def look(self, command: Sequence[str]) -> bytes:
        """Run a command that changes nothing, and give what it prints."""
        self.looked.append(tuple(command))
        return self._run(command, changes=False)

    def change(self, command: Sequence[str]) -> bytes:
        """Run a command that changes something, and give what it prints."""
        return self._run(command, changes=True)

    def arguments(self, command: Sequence[str]) -> list[str]:
        """Give the whole argument list of a command."""
        # Behind the subcommand: the program knows no flags before it.
        socket = ("-socketPath", self.socket_path) if self.socket_path else ()
        return [*self.prefix, *command, *socket]

    def shown(self, command: Sequence[str]) -> str:
        """Give a command as a line to copy into a shell."""
        return shlex.join(self.arguments(command))

    def _run(self, command: Sequence[str], *, changes: bool) -> bytes:
        arguments = self.arguments(command)
        try:
            process = subprocess.Popen(  # noqa: S603 - the operator's own prefix, and no shell
                arguments,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as exc:
            missing = isinstance(exc, FileNotFoundError)
            raise not_started(arguments[0], exc.strerror or str(exc), missing=missing) from exc
        printed = _Reader(process.stdout, _STDOUT_LIMIT)
        said = _Reader(process.stderr, _STDERR_LIMIT)
        try:
            status = process.wait(self.timeout_seconds)
            if not (printed.is_done(self.timeout_seconds) and said.is_done(self.timeout_seconds)):
                raise subprocess.TimeoutExpired(arguments, self.timeout_seconds)
        except subprocess.TimeoutExpired:
            raise timed_out(command, self.timeout_seconds, changes=changes) from None
        finally:
            process.kill()  # nothing is done if it has ended
            process.wait()
        if status != 0:
            raise failure(command, status, said.data.decode("utf-8", "replace"))
        if printed.has_more:
            raise too_long(command, _STDOUT_LIMIT)
        return bytes(printed.data)


class _Reader:
    """The beginning of what comes out of a pipe; the rest is thrown away, so that nobody waits."""

    def __init__(self, pipe: IO[bytes] | None, limit: int) -> None:
        assert pipe is not None
        self.data, self.has_more = bytearray(), False
        self._pipe, self._limit = pipe, limit
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def is_done(self, seconds: float) -> bool:
        """Wait for the end, which a child of the program's may keep away."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _read(self) -> None:
        with self._pipe:
            while piece := self._pipe.read(_PIECE):
                room = self._limit - len(self.data)
                self.data += piece[:room]
                self.has_more = self.has_more or len(piece) > room
