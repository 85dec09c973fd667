"""The `spire-server` program: one command, its standard output.

Gets a command prefix, which may lead into a container, and argument lists; no shell is ever in
between, and nothing is read or written in the container but by pipes. Raises `RegistrationError`.
What a command prints is given to the caller and to nobody else: it may be a join token.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from sidecar.core.registration_faults import failure, not_started, timed_out

# Of what went wrong only the beginning is looked at: the usage that Go prints is long.
_STDERR_LIMIT = 64 * 1024


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
            done = subprocess.run(  # noqa: S603 - the operator's own prefix, and no shell
                arguments,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            # Without the cause: it holds the output so far.
            raise timed_out(command, self.timeout_seconds, changes=changes) from None
        except OSError as exc:
            missing = isinstance(exc, FileNotFoundError)
            raise not_started(arguments[0], exc.strerror or str(exc), missing=missing) from exc
        if done.returncode != 0:
            said = done.stderr[:_STDERR_LIMIT].decode("utf-8", "replace")
            raise failure(command, done.returncode, said)
        return done.stdout
