"""How much a peer may ask for: token buckets for the rate, slots for what runs at a time.

Gets a key (a peer and the rule that admits it, or any other value) and the limits that hold now;
gives seconds to wait, or a ticket that runs, waits or is refused. Nothing here waits or wakes
anybody, and no clock is read: the caller passes monotonic seconds. One key's load never takes
what another one needs: buckets are apart, free slots go round, and the queue keeps room.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Pace:
    """How long one request may keep us waiting for its peer, however its bytes drip.

    An average, and some seconds on top for what a network does at the beginning or while it is
    changed: an upload over bad Wi-Fi (50 kB/s, with pauses) stays far above 1 KiB/s, and each
    second at 50 kB/s earns 49 seconds of pause.
    """

    body_seconds: float = 3600
    bytes_per_second: float = 1024
    grace_seconds: float = 30

    @property
    def look_seconds(self) -> float:
        """Return how often to look."""
        return min(self.body_seconds, self.grace_seconds) / 16

    def fault(self, waited_seconds: float, moved_bytes: int) -> str:
        """Say what is too slow about so many bytes in so many seconds; empty: nothing is."""
        least = self.bytes_per_second
        if least and waited_seconds > self.grace_seconds + moved_bytes / least:
            seen = f"{moved_bytes} bytes in {waited_seconds:.0f} s"
            return f"{seen}; the least is {least:g} a second ([limits] min_bytes_per_second)"
        return ""

    def fault_of_body(self, waited_seconds: float, moved_bytes: int) -> str:
        """Say what is too slow about a body, which has a deadline as well."""
        if waited_seconds > self.body_seconds:
            return f"not complete within {self.body_seconds:g} s ([timeouts] request_body)"
        return self.fault(waited_seconds, moved_bytes)


class _Place(enum.Enum):
    QUEUED = enum.auto()
    RUNNING = enum.auto()
    LEFT = enum.auto()


class Ticket:
    """One request's place among all; `RequestSlots` alone changes it."""

    __slots__ = ("_maximum_of_part", "_part", "_place", "key")

    def __init__(self, key: Hashable, maximum_of_part: int | None, part: Hashable) -> None:
        self.key = key
        self._maximum_of_part = maximum_of_part
        self._part = part
        self._place = _Place.QUEUED

    @property
    def running(self) -> bool:
        """Tell whether the request may run now."""
        return self._place is _Place.RUNNING


class RequestSlots:
    """Slots for requests that run, and a short queue for those that wait for one.

    A key (a peer) has at most `maximum_of_key` of the slots, and a part of it (a rule) what its
    tickets say. A free slot goes round among the keys that wait, and within a key among its
    parts. What has reached its maximum lets the others pass and keeps its turn. Connections are
    counted by the same rules.
    """

    def __init__(self, maximum: int, queue_maximum: int, maximum_of_key: int | None = None) -> None:
        self._maximum, self._queue_maximum = maximum, queue_maximum
        self._maximum_of_key = maximum if maximum_of_key is None else maximum_of_key
        self._running: Counter[Hashable] = Counter()
        self._running_of_part: Counter[tuple[Hashable, Hashable]] = Counter()
        self._waiting: OrderedDict[Hashable, OrderedDict[Hashable, deque[Ticket]]] = OrderedDict()
        self._total_running = self._total_queued = 0

    @property
    def running(self) -> int:
        """How many requests run."""
        return self._total_running

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return self._total_queued

    @property
    def is_full(self) -> bool:
        """Return whether no slot is free, for any key."""
        return self._total_running >= self._maximum

    def running_of(self, key: Hashable) -> int:
        """Return how many requests of one key run."""
        return self._running.get(key, 0)

    def enter(
        self, key: Hashable, maximum_of_part: int | None, part: Hashable = None
    ) -> Ticket | None:
        """Give a ticket that runs or waits; None: the queue has no place for this key."""
        ticket = Ticket(key, maximum_of_part, part)
        parts = self._waiting.get(key) or OrderedDict()
        # What waits while a slot is free waits for its own key, so nothing is overtaken.
        if part not in parts and self._may_run(ticket):
            self._run(ticket)
            return ticket
        waiting = sum(map(len, parts.values()))
        # A key may hold as many places as it leaves free. So one greedy key gets half of the
        # queue, two get a third each, and the last place goes to a key that has none; a fixed
        # share would either be lost while few wait, or be too large when many do.
        if waiting >= self._queue_maximum - self._total_queued:
            return None
        waits = self._waiting.setdefault(key, OrderedDict()).setdefault(part, deque())
        waits.append(ticket)
        self._total_queued += 1
        return ticket

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """Give the ticket back, whether it ran or gave up; gives those that run from now on.

        A ticket that was given back before changes nothing.
        """
        if ticket._place is _Place.RUNNING:
            self._total_running -= 1
            _count_down(self._running, ticket.key)
            _count_down(self._running_of_part, (ticket.key, ticket._part))
        elif ticket._place is _Place.QUEUED:
            self._take_from_queue(ticket)
        ticket._place = _Place.LEFT
        return self._fill()

    def resize(
        self, maximum: int, queue_maximum: int, maximum_of_key: int | None = None
    ) -> list[Ticket]:
        """Go on with other maxima; gives those that run from now on. Who runs or waits stays."""
        self._maximum, self._queue_maximum = maximum, queue_maximum
        self._maximum_of_key = maximum if maximum_of_key is None else maximum_of_key
        return self._fill()

    def _may_run(self, ticket: Ticket) -> bool:
        if self.is_full or self._running[ticket.key] >= self._maximum_of_key:
            return False
        most = ticket._maximum_of_part
        return most is None or self._running_of_part[ticket.key, ticket._part] < most

    def _run(self, ticket: Ticket) -> None:
        ticket._place = _Place.RUNNING
        self._total_running += 1
        self._running[ticket.key] += 1
        self._running_of_part[ticket.key, ticket._part] += 1

    def _take_from_queue(self, ticket: Ticket) -> None:
        parts = self._waiting[ticket.key]
        parts[ticket._part].remove(ticket)
        self._total_queued -= 1
        if not parts[ticket._part]:
            del parts[ticket._part]
        if not parts:
            del self._waiting[ticket.key]

    def _fill(self) -> list[Ticket]:
        started: list[Ticket] = []
        while ticket := self._next():
            self._take_from_queue(ticket)
            if parts := self._waiting.get(ticket.key):
                self._waiting.move_to_end(ticket.key)
                if ticket._part in parts:
                    parts.move_to_end(ticket._part)
            self._run(ticket)
            started.append(ticket)
        return started

    def _next(self) -> Ticket | None:
        if self.is_full:
            return None
        first = (tickets[0] for parts in self._waiting.values() for tickets in parts.values())
        return next((ticket for ticket in first if self._may_run(ticket)), None)


def _count_down(counts: Counter[Any], key: Hashable) -> None:
    """Count one less; what is at zero is forgotten."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
