"""How much a peer may ask for: token buckets for the rate, slots for what runs at a time.

Gets a key (a peer and the rule that admits it, or any other value) and the limits that hold now;
gives seconds to wait, or a ticket that runs, waits or is refused. Nothing here waits or wakes
anybody, and no clock is read: the caller passes monotonic seconds. One key's load never takes
what another one needs: buckets are apart, free slots go round, and the queue keeps room.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

# A caller that waits as long as it was told must be let in, whatever rounding did to the sum.
# Never adds up: a bucket's time moves on by whole tokens.
_ROUNDING_SECONDS = 1e-6
_SWEPT_PER_TAKE = 2


@dataclass(slots=True)
class _Bucket:
    """A bucket as the moment at which it is full again; until then it lacks tokens."""

    full_at: float
    rate: float
    burst: int

    def change(self, rate: float, burst: int, now: float) -> None:
        """Go on with other limits and with the tokens that are there, as far as they fit."""
        lacking = (self.full_at - now) * self.rate
        tokens = min(float(burst), self.burst - lacking)
        self.full_at = now + (burst - tokens) / rate
        self.rate, self.burst = rate, burst


class TokenBuckets:
    """One bucket per key, full at first; only buckets that lack tokens are remembered."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, rate: float, burst: int, now: float) -> float:
        """Take a token: 0.0 when it was there, else the seconds until it is.

        `rate` (tokens in a second) is above 0, `burst` at least 1; `now` never runs back.
        """
        self._sweep(now)
        bucket = self._buckets.get(key)
        if bucket is None or bucket.full_at <= now:
            bucket = _Bucket(now, rate, burst)
        elif (bucket.rate, bucket.burst) != (rate, burst):
            bucket.change(rate, burst, now)
        full_at = bucket.full_at + 1 / rate
        wait = full_at - burst / rate - now
        if wait <= _ROUNDING_SECONDS:
            bucket.full_at = full_at
            self._buckets[key] = bucket
            return 0.0
        return wait

    def _sweep(self, now: float) -> None:
        # Each call adds one bucket at most and looks at two, in turn: so there are never many
        # more than twice those that lack tokens, and no call pays for all of them.
        for _ in range(min(_SWEPT_PER_TAKE, len(self._buckets))):
            key, bucket = self._buckets.popitem(last=False)
            if bucket.full_at > now:
                self._buckets[key] = bucket


class _Place(enum.Enum):
    QUEUED = enum.auto()
    RUNNING = enum.auto()
    LEFT = enum.auto()


class Ticket:
    """One request's place among all; `RequestSlots` alone changes it."""

    __slots__ = ("_maximum_of_key", "_place", "key")

    def __init__(self, key: Hashable, maximum_of_key: int | None) -> None:
        self.key = key
        self._maximum_of_key = maximum_of_key
        self._place = _Place.QUEUED

    @property
    def running(self) -> bool:
        """Tell whether the request may run now."""
        return self._place is _Place.RUNNING


class RequestSlots:
    """Slots for requests that run, and a short queue for those that wait for one.

    A free slot goes round among the keys that wait, and to the first ticket of each. A key whose
    maximum is reached lets the others pass and keeps its turn.
    """

    def __init__(self, maximum: int, queue_maximum: int) -> None:
        self._maximum = maximum
        self._queue_maximum = queue_maximum
        self._running: dict[Hashable, int] = {}
        self._waiting: OrderedDict[Hashable, deque[Ticket]] = OrderedDict()
        self._total_running = 0
        self._total_queued = 0

    @property
    def running(self) -> int:
        """How many requests run."""
        return self._total_running

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return self._total_queued

    def enter(self, key: Hashable, maximum_of_key: int | None) -> Ticket | None:
        """Give a ticket that runs or waits; None: the queue has no place for this key."""
        ticket = Ticket(key, maximum_of_key)
        # Whoever waits while a slot is free waits for its own key, so nobody is overtaken.
        if key not in self._waiting and self._may_run(ticket):
            self._run(ticket)
            return ticket
        waiting = len(self._waiting.get(key, ()))
        # A key may hold as many places as it leaves free. So one greedy key gets half of the
        # queue, two get a third each, and the last place goes to a key that has none; a fixed
        # share would either be lost while few wait, or be too large when many do.
        if waiting >= self._queue_maximum - self._total_queued:
            return None
        self._waiting.setdefault(key, deque()).append(ticket)
        self._total_queued += 1
        return ticket

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """Give the ticket back, whether it ran or gave up; gives those that run from now on.

        A ticket that was given back before changes nothing.
        """
        if ticket._place is _Place.RUNNING:
            self._total_running -= 1
            self._running[ticket.key] -= 1
            if not self._running[ticket.key]:
                del self._running[ticket.key]
        elif ticket._place is _Place.QUEUED:
            self._take_from_queue(ticket)
        ticket._place = _Place.LEFT
        return self._fill()

    def resize(self, maximum: int, queue_maximum: int) -> list[Ticket]:
        """Go on with other maxima; gives those that run from now on. Who runs or waits stays."""
        self._maximum, self._queue_maximum = maximum, queue_maximum
        return self._fill()

    def _may_run(self, ticket: Ticket) -> bool:
        if self._total_running >= self._maximum:
            return False
        maximum = ticket._maximum_of_key
        return maximum is None or self._running.get(ticket.key, 0) < maximum

    def _run(self, ticket: Ticket) -> None:
        ticket._place = _Place.RUNNING
        self._total_running += 1
        self._running[ticket.key] = self._running.get(ticket.key, 0) + 1

    def _take_from_queue(self, ticket: Ticket) -> None:
        tickets = self._waiting[ticket.key]
        tickets.remove(ticket)
        self._total_queued -= 1
        if not tickets:
            del self._waiting[ticket.key]

    def _fill(self) -> list[Ticket]:
        started: list[Ticket] = []
        while ticket := self._next():
            self._take_from_queue(ticket)
            if ticket.key in self._waiting:
                self._waiting.move_to_end(ticket.key)
            self._run(ticket)
            started.append(ticket)
        return started

    def _next(self) -> Ticket | None:
        if self._total_running >= self._maximum:
            return None
        first = (tickets[0] for tickets in self._waiting.values())
        return next((ticket for ticket in first if self._may_run(ticket)), None)
