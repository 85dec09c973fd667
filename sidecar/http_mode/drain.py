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
        self._idle: dict[socket.socket, trio.CancelScope] = {}
        self._begun: dict[socket.socket, trio.CancelScope] = {}

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
        sock = next(iter(group), None)
        if sock is not None:
            group.pop(sock).cancel()
            for _ in range(2):  # it runs within these, and does not wait on its way out
                await trio.lowlevel.checkpoint()

    def end(self, sock: socket.socket) -> None:
        """Let one connection end, if it waits for the beginning of a request."""
        if sock in self._idle:
            self._idle.pop(sock).cancel()

    def begin(self) -> None:
        """Begin the end."""
        self.begun = True
        for gate in self.gates:
            gate.close_after_answer()
        for sock in list(self._idle):
            self.end(sock)


async def _readable(
    sock: socket.socket, deadline: float, group: dict[socket.socket, trio.CancelScope]
) -> bool:
    """Wait as a member of `group`: who is taken from it and cancelled gives way."""
    scope = trio.CancelScope(deadline=deadline)
    group[sock] = scope
    try:
        with scope:
            await trio.lowlevel.wait_readable(sock)
        if scope.cancelled_caught and sock not in group:
            raise GivesWayError
    finally:
        group.pop(sock, None)
    return not scope.cancelled_caught
