"""Places that tasks hold and wait for: handshakes, connections, requests.

Who gets a free place is decided in `core.limits`; here a task waits for its turn, and a handshake
is ended when its place is needed. Knows neither sockets nor TLS.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from sidecar.core.limits import RequestSlots, Ticket
from sidecar.core.spiffe_id import SpiffeId

# A connection without a slot waits so long for one, and so many wait.
_ROOM_SECONDS = 1.0
_WAITING_CONNECTIONS = 64
# Once the drain has begun, a handshake has so long.
_HANDSHAKE_IN_DRAIN_SECONDS = 0.5


class Turns:
    """The slots, and the events that their tickets are waited for with."""

    def __init__(self, maximum: int, queue_maximum: int, maximum_of_key: int | None) -> None:
        self.slots = RequestSlots(maximum, queue_maximum, maximum_of_key)
        self._waiting: dict[Ticket, trio.Event] = {}

    def resize(self, maximum: int, queue_maximum: int, maximum_of_key: int | None) -> None:
        """Go on with other limits: what runs goes on, and what may run now does."""
        self._wake(self.slots.resize(maximum, queue_maximum, maximum_of_key))

    def enter(self, key: Hashable, most: int | None, part: Hashable = None) -> Ticket | None:
        """Return a ticket that runs or waits; None: too many wait already."""
        ticket = self.slots.enter(key, most, part)
        if ticket is not None and not ticket.running:
            self._waiting[ticket] = trio.Event()
        return ticket

    async def wait(self, ticket: Ticket, seconds: float) -> bool:
        """Wait until the ticket runs; False when that takes too long."""
        if not ticket.running:
            with trio.move_on_after(seconds):
                await self._waiting[ticket].wait()
        return ticket.running

    def leave(self, ticket: Ticket) -> None:
        """Give the ticket back, and wake those that may run now."""
        self._waiting.pop(ticket, None)
        self._wake(self.slots.leave(ticket))

    def _wake(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            self._waiting.pop(ticket).set()


class Slots:
    """Limits connections; a handshake takes a slot of its own kind.

    Past `maximum_handshakes` the oldest handshake is ended: an honest one is done in
    milliseconds, so what is old is slow or silent, and it cannot keep the others out. A host that
    holds more than half of them loses its own oldest, so that its flood does not end slow
    handshakes of others.
    """

    def __init__(
        self, maximum: int, maximum_handshakes: int, maximum_per_peer: int | None = None
    ) -> None:
        self._maximum_handshakes = maximum_handshakes
        self._handshakes: dict[trio.CancelScope, str] = {}
        self._handshakes_of: Counter[str] = Counter()
        self._turns = Turns(maximum, _WAITING_CONNECTIONS, maximum_per_peer)
        self.draining = False

    def resize(
        self, maximum: int, maximum_handshakes: int, maximum_per_peer: int | None = None
    ) -> None:
        """Go on with other limits; no connection ends because of it."""
        self._maximum_handshakes = maximum_handshakes
        self._turns.resize(maximum, _WAITING_CONNECTIONS, maximum_per_peer)

    # Handshakes.

    @property
    def handshakes(self) -> int:
        """How many handshakes are under way."""
        return len(self._handshakes)

    @property
    def room_for_handshakes(self) -> bool:
        """Tell whether a handshake can begin without another one being ended."""
        return len(self._handshakes) < self._maximum_handshakes

    @contextmanager
    def handshake(self, host: str = "") -> Iterator[trio.CancelScope]:
        """Hold a handshake slot; the scope is cancelled when the slot is taken away.

        `host` is where the peer is, for its share.
        """
        while not self.room_for_handshakes:
            self._end_handshake()
        now = trio.current_time()
        deadline = now + _HANDSHAKE_IN_DRAIN_SECONDS if self.draining else math.inf
        with trio.CancelScope(deadline=deadline) as scope:
            self._handshakes[scope] = host
            self._handshakes_of[host] += 1
            try:
                yield scope
            finally:
                self._forget_handshake(scope)

    def _end_handshake(self) -> None:
        oldest = next(iter(self._handshakes))
        host, count = self._handshakes_of.most_common(1)[0]
        if count > self._maximum_handshakes / 2:
            oldest = next(one for one, of in self._handshakes.items() if of == host)
        self._forget_handshake(oldest)
        oldest.cancel()

    def _forget_handshake(self, scope: trio.CancelScope) -> None:
        host = self._handshakes.pop(scope, None)
        if host is not None:
            self._handshakes_of[host] -= 1
            if not self._handshakes_of[host]:
                del self._handshakes_of[host]

    def drain(self) -> None:
        """Give what is not through its handshake a moment: it must not hold up the end."""
        self.draining = True
        soon = trio.current_time() + _HANDSHAKE_IN_DRAIN_SECONDS
        for scope in self._handshakes:
            scope.deadline = min(scope.deadline, soon)

    # Connections.

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return self._turns.slots.running

    def connections_of(self, peer: SpiffeId) -> int:
        """Return how many connections one peer has."""
        return self._turns.slots.running_of(peer)

    @asynccontextmanager
    async def connection(
        self,
        peer: SpiffeId,
        most: int | None = None,
        make_room: Callable[[SpiffeId, bool], None] = lambda _peer, _is_full: None,
    ) -> AsyncIterator[str]:
        """Hold a connection slot; gives why there is none, or an empty text.

        `most` is what the peer's rule says. Without a free slot `make_room` is called with the
        peer and whether all slots are taken, and a moment is waited: connections end all the time.
        """
        slots = self._turns.slots
        ticket = self._turns.enter(peer, most)
        try:
            is_full = slots.is_full
            if ticket is not None and not ticket.running:
                make_room(peer, is_full)
            if ticket is not None and await self._turns.wait(ticket, _ROOM_SECONDS):
                yield ""
            else:
                yield "too many connections" + ("" if is_full else " of this peer")
        finally:
            if ticket is not None:
                self._turns.leave(ticket)
