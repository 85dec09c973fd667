"""Connections that only wait for a request, and the end of all connections.

When the end begins, those that wait close at once, and the others after their answer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from sidecar.adapters.tls import TlsStream
from sidecar.core.http_gate import HttpGate
from sidecar.core.spiffe_id import SpiffeId

# In the drain a request that has not come, or not its whole head, is waited for so long.
_REQUEST_IN_DRAIN_SECONDS = 2.0


class GivesWayError(Exception):
    """A connection that only waited has to end."""


class Waiting:
    """The connections that wait for the same thing, by peer, the oldest of each first."""

    def __init__(self) -> None:
        self.of_peer: dict[SpiffeId, dict[socket.socket, trio.CancelScope]] = {}

    async def readable(self, peer: TlsStream, deadline: float) -> bool:
        """Wait for bytes; False when none come in time, `GivesWayError` when it has to end."""
        mine = self.of_peer.setdefault(peer.peer, {})
        scope = mine[peer.sock] = trio.CancelScope(deadline=deadline)
        try:
            with scope:
                await trio.lowlevel.wait_readable(peer.sock)
            if scope.cancelled_caught and peer.sock not in mine:
                raise GivesWayError
        finally:
            mine.pop(peer.sock, None)
            if not mine and self.of_peer.get(peer.peer) is mine:
                del self.of_peer[peer.peer]
        return not scope.cancelled_caught

    def end(self, peer: SpiffeId, sock: socket.socket) -> None:
        """Let one connection end, if it is one of these."""
        scope = self.of_peer.get(peer, {}).pop(sock, None)
        if scope is not None:
            scope.cancel()

    def end_all(self) -> None:
        """Let all of them end."""
        for peer, socks in list(self.of_peer.items()):
            for sock in list(socks):
                self.end(peer, sock)

    def hurry(self, deadline: float) -> None:
        """Wait no longer than until then."""
        for socks in self.of_peer.values():
            for scope in socks.values():
                scope.deadline = min(scope.deadline, deadline)


class Drain:
    """Whether the end has begun, and who waits for a request that need not come any more."""

    def __init__(self) -> None:
        self.begun = False
        self.gates: set[HttpGate] = set()  # of all connections
        # Who waits for the beginning of a request, and for the rest of one.
        self._idle, self._fresh, self._begun = Waiting(), Waiting(), Waiting()

    async def first_bytes(self, peer: TlsStream, deadline: float, *, is_first: bool) -> bool:
        """Wait for a request; False when none comes in time, `GivesWayError` when it has to end.

        Who has just connected when the end begins still asks one thing: it could not know.
        """
        if self.begun and not is_first:
            raise GivesWayError
        waiting = self._fresh if is_first else self._idle
        return await waiting.readable(peer, self._by(deadline))

    async def more_bytes(self, peer: TlsStream, deadline: float) -> bool:
        """Wait for the rest of a head, as `first_bytes`."""
        return await self._begun.readable(peer, self._by(deadline))

    def _by(self, deadline: float) -> float:
        """Give the deadline, or the one that the end has set."""
        if not self.begun:
            return deadline
        return min(deadline, trio.current_time() + _REQUEST_IN_DRAIN_SECONDS)

    def make_room(
        self, peer: SpiffeId, *, is_full: bool, connections_of: Callable[[SpiffeId], int]
    ) -> None:
        """Let the connection end that has waited for longest, of the peer that has most.

        None of a peer that has fewer than the one for which there has to be room; and only of that
        one while others have room. What had an answer goes first.
        """
        groups = self._idle, self._fresh, self._begun
        waiting = {one for group in groups for one, socks in group.of_peer.items() if socks}
        mine = max(connections_of(peer), 1)
        able = [one for one in waiting if one == peer or (is_full and connections_of(one) >= mine)]
        if able:
            greedy = max(able, key=connections_of)
            group = next(one for one in groups if one.of_peer.get(greedy))
            group.end(greedy, next(iter(group.of_peer[greedy])))

    def end(self, peer: TlsStream) -> None:
        """Let one connection end, if it waits for the beginning of a request."""
        for group in (self._idle, self._fresh):
            group.end(peer.peer, peer.sock)

    def end_idle(self) -> None:
        """Let all connections end that have had an answer and wait for another request."""
        self._idle.end_all()

    def begin(self) -> None:
        """Begin the end."""
        self.begun = True
        for gate in self.gates:
            gate.close_after_answer()
        self.end_idle()
        soon = trio.current_time() + _REQUEST_IN_DRAIN_SECONDS
        self._fresh.hurry(soon)
        self._begun.hurry(soon)
