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

    async def open(self) -> None:
        """Connect anew, or raise `BackendError`."""
        self.drop()
        self._sock = await backend.connect(self._address, self._connect_seconds)

    def keep(self) -> None:
        """Keep it for the next request."""
        self._used_at = trio.current_time()

    def drop(self) -> None:
        """Close it."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
