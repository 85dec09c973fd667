"""One peer connection's connection to the backend, used again while it is fresh.

A model server may close an idle connection at any time, some after 5 s, and a request that meets
the closing is lost. So one is kept for a moment only, and looked at before it is used again.
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
        self._used_at = 0.0

    async def open(self) -> socket.socket:
        """Give the connection of the last request if it is fresh, or a new one."""
        if self._sock is not None and not self._is_fresh(self._sock):
            self.drop()
        if self._sock is None:
            self._sock = await backend.connect(self._address, self._connect_seconds)
        return self._sock

    def _is_fresh(self, sock: socket.socket) -> bool:
        if trio.current_time() - self._used_at > FRESH_SECONDS:
            return False
        try:
            sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True  # open, and silent as it should be
        except OSError:
            return False
        return False

    def keep(self) -> None:
        """Keep it for the next request."""
        self._used_at = trio.current_time()

    def drop(self) -> None:
        """Close it."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
