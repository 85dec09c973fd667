"""Connections that only wait for a request, and the end of all connections.

When the end begins, those that wait close at once, and the others after their answer.
"""

from __future__ import annotations

import socket

import trio


class Drain:
    """Whether the end has begun, and who waits for a request that need not come any more."""

    def __init__(self) -> None:
        self.begun = False
        self._idle: dict[trio.CancelScope, None] = {}  # the oldest first

    async def readable(self, sock: socket.socket, deadline: float) -> bool:
        """Wait for bytes; False when none come in time, or the end begins."""
        if self.begun:
            return False
        scope = trio.CancelScope(deadline=deadline)
        self._idle[scope] = None
        try:
            with scope:
                await trio.lowlevel.wait_readable(sock)
        finally:
            self._idle.pop(scope, None)
        return not scope.cancelled_caught

    async def end_oldest(self) -> None:
        """Let the connection that has waited for longest end, to make room for another one."""
        scope = next(iter(self._idle), None)
        if scope is not None:
            del self._idle[scope]
            scope.cancel()
            for _ in range(2):  # it runs within these, and does not wait on its way out
                await trio.lowlevel.checkpoint()

    def begin(self) -> None:
        """Begin the end."""
        self.begun = True
        for scope in list(self._idle):
            scope.cancel()
