"""The service manager that started us: what it is told, and the sockets that it hands over.

    systemd     datagrams to $NOTIFY_SOCKET; descriptors from 3 on
    launchd     hears no notices; sockets by their name in the plist

Each is asked once, at start: the variables are taken out of the environment, so that no program
that we start (a hook) speaks for us or takes our sockets for its own. A manager that cannot be
told is a reason for the log and never an error; a socket that is not as promised is one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from sidecar.adapters.service_manager import launchd, systemd
from sidecar.core.errors import ListenError

__all__ = ["NoNotifier", "Notifier", "inherited", "notifier"]

_LAUNCHD = "launchd:"


class Notifier(Protocol):
    """Tells the service manager how we are; each call gives None, or why it was not told.

    No call waits. `watchdog_seconds` is how often `watchdog` is to be called; None means never.
    """

    @property
    def watchdog_seconds(self) -> float | None:
        """Give half of the time after which the manager takes us for dead."""

    def ready(self, status: str = "") -> str | None:
        """Tell that we serve, or that a reload is done, as it may be."""

    def reloading(self) -> str | None:
        """Tell that a reload begins; `ready` has to follow, also when it failed."""

    def stopping(self, status: str = "") -> str | None:
        """Tell that we drain or end."""

    def status(self, text: str) -> str | None:
        """Tell a person, in one line."""

    def watchdog(self) -> str | None:
        """Tell that we are alive."""

    def close(self) -> None:
        """Tell nothing more."""


class NoNotifier:
    """Nobody wants to be told: launchd, a terminal, systemd with another `Type=`."""

    watchdog_seconds: float | None = None

    def ready(self, status: str = "") -> str | None:
        """Do nothing."""

    def reloading(self) -> str | None:
        """Do nothing."""

    def stopping(self, status: str = "") -> str | None:
        """Do nothing."""

    def status(self, text: str) -> str | None:
        """Do nothing."""

    def watchdog(self) -> str | None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def notifier(environ: MutableMapping[str, str] = os.environ) -> Notifier:
    """Take what the environment says of a manager that wants to be told."""
    return systemd.notifier(environ) or NoNotifier()


def inherited(
    kinds: Sequence[str], environ: MutableMapping[str, str] = os.environ
) -> dict[str, list[socket.socket]]:
    """Take the listening sockets of each kind, or raise `ListenError` and take none.

    "launchd:NAME", "systemd:NAME", or "systemd": all that no other kind names. To be called once.
    They listen already, and the manager holds them too: never shut one down, only close it. Then
    connections wait in it for whoever is started next.
    """
    with ExitStack() as taken:
        found = {}
        if of_systemd := [kind for kind in kinds if kind.partition(":")[0] == "systemd"]:
            found = _of_systemd(of_systemd, environ, taken)
        for kind in kinds:
            if kind.startswith(_LAUNCHD):
                found[kind] = launchd.sockets(kind.removeprefix(_LAUNCHD))
                for sock in found[kind]:
                    taken.enter_context(sock)
            elif kind not in found:
                hint = 'expected "systemd:NAME" or "launchd:NAME"'
                raise ListenError(f"no sockets come from {kind!r}", hint)
        taken.pop_all()
    return found


def _of_systemd(
    kinds: Sequence[str], environ: MutableMapping[str, str], taken: ExitStack
) -> dict[str, list[socket.socket]]:
    found: dict[str, list[socket.socket]] = {kind: [] for kind in kinds}
    named = systemd.sockets(environ)
    for _, sock in named:
        taken.enter_context(sock)
    names = sorted({name for name, _ in named})
    for name, sock in named:
        kind = f"systemd:{name}" if f"systemd:{name}" in found else "systemd"
        if kind not in found:
            # Connections would wait in it for ever.
            message = f"socket {name!r} from systemd is in no table"
            raise ListenError(message, f'name it: address = "systemd:{name}"')
        found[kind].append(sock)
    for kind, sockets in found.items():
        if not sockets:
            message = f"no socket for {kind!r}: systemd gives {', '.join(names)}"
            raise ListenError(message, f"FileDescriptorName={kind[8:] or 'peers'} in a socket unit")
    return found
