"""Descriptors that a service manager hands over: proven to be listening stream sockets.

What is not as promised is refused before it is used: a socket that does not listen would look
like a daemon to which nobody connects.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.core.errors import ListenError

_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


@dataclass(frozen=True, slots=True)
class Handed:
    """One descriptor, and what a message calls it."""

    descriptor: int
    name: str


def take_over(handed: Sequence[Handed]) -> list[socket.socket]:
    """Make sockets of all, closed on exec and non-blocking; or raise `ListenError` and take none.

    What was taken before the fault is closed: of each the manager has a descriptor of its own.
    """
    sockets: list[socket.socket] = []
    try:
        for one in handed:
            sockets.append(_socket(one))
            _check(sockets[-1], one)
            sockets[-1].setblocking(False)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _socket(handed: Handed) -> socket.socket:
    """Give the socket; a descriptor that is none is left alone."""
    try:
        is_socket = stat.S_ISSOCK(os.fstat(handed.descriptor).st_mode)
    except OSError as exc:
        raise ListenError(f"{handed.name}: {exc.strerror}", "expected an open descriptor") from exc
    if not is_socket:
        raise ListenError(f"{handed.name}: not a socket", "expected a listening stream socket")
    os.set_inheritable(handed.descriptor, False)
    return socket.socket(fileno=handed.descriptor)


def _check(sock: socket.socket, handed: Handed) -> None:
    if sock.family not in _FAMILIES:
        family = getattr(sock.family, "name", str(sock.family))
        raise ListenError(f"{handed.name}: a socket of {family}", "expected TCP or a Unix socket")
    if sock.type != socket.SOCK_STREAM:
        kind = getattr(sock.type, "name", str(sock.type))
        raise ListenError(f"{handed.name}: a socket of {kind}", "expected a stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        hint = "one process for each connection (Accept=yes, or inetd in a plist) is not for us"
        raise ListenError(f"{handed.name}: does not listen", hint)
