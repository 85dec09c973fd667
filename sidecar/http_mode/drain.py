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
        # Who waits for the beginning of a request, and for the rest of one; the oldest first.
        self._idle: dict[trio.CancelScope, None] = {}
        self._begun: dict[trio.CancelScope, None] = {}

    async def first_bytes(self, sock: socket.socket, deadline: float) -> bool:
        """Wait for a request; False when none comes in time, `GivesWayError` when it has to end."""
        if self.begun:
            raise GivesWayError
        return await _readable(sock, deadline, self._idle)

    async def more_bytes(self, sock: socket.socket, deadline: float) -> bool:
        """Wait for the rest of a head, as `first_bytes`; the end that begins lets it come."""
        return await _readable(sock, deadline, self._begun)

    async def end_oldest(self) -> None:
        """Let the connection that has waited for longest end, to make room for another one."""
        group = self._idle or self._begun
        scope = next(iter(group), None)
        if scope is not None:
            del group[scope]
            scope.cancel()
            for _ in range(2):  # it runs within these, and does not wait on its way out
                await trio.lowlevel.checkpoint()

    def begin(self) -> None:
        """Begin the end."""
        self.begun = True
        for gate in self.gates:
            gate.close_after_answer()
        idle = list(self._idle)
        self._idle.clear()
        for scope in idle:
            scope.cancel()


async def _readable(
    sock: socket.socket, deadline: float, group: dict[trio.CancelScope, None]
) -> bool:
    """Wait as a member of `group`: who is taken from it and cancelled gives way."""
    scope = trio.CancelScope(deadline=deadline)
    group[scope] = None
    try:
        with scope:
            await trio.lowlevel.wait_readable(sock)
        if scope.cancelled_caught and scope not in group:
            raise GivesWayError
    finally:
        group.pop(scope, None)
    return not scope.cancelled_caught
