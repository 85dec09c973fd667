"""Connections that only wait for a request, and the end of all connections.

When the end begins, those that wait close at once, and the others after their answer.
"""

from __future__ import annotations

import socket

import trio

from sidecar.core.http_gate import HttpGate


class GivesWayError(Exception):
    """A connection that only waited has to end."""


class Drain:
    """Whether the end has begun, and who waits for a request that need not come any more."""

    def __init__(self) -> None:
        self.begun = False
        self.gates: set[HttpGate] = set()  # of all connections
        self._idle: dict[trio.CancelScope, None] = {}  # the oldest first

    async def readable(self, sock: socket.socket, deadline: float) -> bool:
        """Wait for bytes; False when none come in time, `GivesWayError` when it has to end."""
        if self.begun:
            raise GivesWayError
        scope = trio.CancelScope(deadline=deadline)
        self._idle[scope] = None
        try:
            with scope:
                await trio.lowlevel.wait_readable(sock)
            if scope.cancelled_caught and scope not in self._idle:
                raise GivesWayError
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
        for gate in self.gates:
            gate.close_after_answer()
        idle, self._idle = self._idle, {}
        for scope in idle:
            scope.cancel()
