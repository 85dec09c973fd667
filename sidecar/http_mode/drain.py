"""Connections that only wait for a request, and the end of all connections.

When the end begins, those that wait close at once, and the others after their answer.
"""

from __future__ import annotations

import socket

import trio

from sidecar.core.http_gate import HttpGate

_FIRST_REQUEST_SECONDS = 2.0


class GivesWayError(Exception):
    """A connection that only waited has to end."""


class Drain:
    """Whether the end has begun, and who waits for a request that need not come any more."""

    def __init__(self) -> None:
        self.begun = False
        self.gates: set[HttpGate] = set()  # of all connections
        # Who waits for the beginning of a request, and for the rest of one; the oldest first.
        self._idle: dict[socket.socket, trio.CancelScope] = {}
        self._fresh: dict[socket.socket, trio.CancelScope] = {}  # that never had one
        self._begun: dict[socket.socket, trio.CancelScope] = {}

    async def first_bytes(self, sock: socket.socket, deadline: float, *, is_first: bool) -> bool:
        """Wait for a request; False when none comes in time, `GivesWayError` when it has to end.

        Who has just connected when the end begins still asks one thing: it could not know.
        """
        if self.begun and not is_first:
            raise GivesWayError
        if self.begun:
            deadline = min(deadline, trio.current_time() + _FIRST_REQUEST_SECONDS)
        return await _readable(sock, deadline, self._fresh if is_first else self._idle)

    async def more_bytes(self, sock: socket.socket, deadline: float) -> bool:
        """Wait for the rest of a head, as `first_bytes`; the end that begins lets it come."""
        return await _readable(sock, deadline, self._begun)

    async def end_oldest(self) -> None:
        """Let the connection that has waited for longest end, to make room for another one."""
        group = self._idle or self._fresh or self._begun
        sock = next(iter(group), None)
        if sock is not None:
            group.pop(sock).cancel()
            for _ in range(2):  # it runs within these, and does not wait on its way out
                await trio.lowlevel.checkpoint()

    def end(self, sock: socket.socket) -> None:
        """Let one connection end, if it waits for the beginning of a request."""
        for group in (self._idle, self._fresh):
            if sock in group:
                group.pop(sock).cancel()

    def end_idle(self) -> None:
        """Let all connections end that have had an answer and wait for another request."""
        for sock in list(self._idle):
            self.end(sock)

    def begin(self) -> None:
        """Begin the end."""
        self.begun = True
        for gate in self.gates:
            gate.close_after_answer()
        self.end_idle()
        soon = trio.current_time() + _FIRST_REQUEST_SECONDS
        for scope in self._fresh.values():
            scope.deadline = min(scope.deadline, soon)


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
