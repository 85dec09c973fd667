"""The end of all connections: those that only wait close at once, the others after their answer."""

from __future__ import annotations

import socket

import trio


class Drain:
    """Whether the end has begun, and who waits for a request that need not come any more."""

    def __init__(self) -> None:
        self.begun = False
        self._idle: set[trio.CancelScope] = set()

    async def readable(self, sock: socket.socket, seconds: float) -> bool:
        """Wait for bytes; False when none come in time, or the end begins."""
        if self.begun:
            return False
        scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        self._idle.add(scope)
        try:
            with scope:
                await trio.lowlevel.wait_readable(sock)
        finally:
            self._idle.discard(scope)
        return not scope.cancelled_caught

    def begin(self) -> None:
        """Begin the end."""
        self.begun = True
        for scope in list(self._idle):
            scope.cancel()
