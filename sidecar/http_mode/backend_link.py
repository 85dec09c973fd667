"""One peer connection's connection to the backend, used again while it is fresh.

A server may close a connection that it kept at any time, with or without a `Keep-Alive` header
that says when, and a request that meets the closing gets no answer (RFC 9112 9.3.1, Retrying
Requests). So one is kept for a moment only, looked at before it is used again, and used for those
requests alone that can be sent once more. All others have a new connection: on loopback it costs
a tenth of a millisecond.
"""

from __future__ import annotations

import socket

import trio

from sidecar.adapters import backend
from sidecar.core.address import Address

FRESH_SECONDS = 1.0


class BackendLink:
    """At most one connection."""

    def __init__(self, address: Address, connect_seconds: float) -> None:
        self._address, self._connect_seconds = address, connect_seconds
        self._sock: socket.socket | None = None
        self._code = 0  # of the connect; 0: done
        self._used_at = 0.0
        self.is_kept = False  # whether an earlier request was answered on it

    @property
    def sock(self) -> socket.socket:
        """Give the connection; it is open."""
        assert self._sock is not None
        return self._sock

    @property
    def is_open(self) -> bool:
        """Tell whether there is one."""
        return self._sock is not None

    @property
    def is_fresh(self) -> bool:
        """Tell whether there is one that can be used again."""
        if self._sock is None or trio.current_time() - self._used_at > FRESH_SECONDS:
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True  # open, and silent as it should be
        except OSError:
            return False
        return False

    def begin(self) -> bool:
        """Begin to connect, and tell whether that was all; raise `BackendError`."""
        self.drop()
        self.is_kept = False
        self._sock, self._code = backend.begin(self._address)
        return not self._code

    async def finish(self) -> None:
        """Wait until it is connected, or raise `BackendError`."""
        try:
            await backend.finish(self.sock, self._code, self._address, self._connect_seconds)
        except BaseException:
            self.drop()
            raise

    def keep(self) -> None:
        """Keep it for the next request."""
        self._used_at, self.is_kept = trio.current_time(), True

    def drop(self) -> None:
        """Close it."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
