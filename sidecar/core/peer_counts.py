"""What each proven peer does and did: counts by SPIFFE ID, of a bounded number of peers.

Gets a `SpiffeId`, so that what somebody only claims is never counted here. When there are too
many, the peer that has been away for longest goes into "other", and if none is away, the
newcomer does: nobody can make this grow, and those who are here are seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sidecar.core.spiffe_id import SpiffeId

MAX_PEERS = 256
OTHER = "other"


@dataclass(slots=True)
class PeerCounts:
    """One peer: what is open, running and waiting now, and all there was since the start."""

    name: str
    last_seen: datetime
    connections: int = 0
    running: int = 0
    queued: int = 0
    requests: int = 0
    refused: int = 0
    failed: int = 0  # by the backend
    received: int = 0
    sent: int = 0

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Count a request of the peer as one that waits for its turn, not as one that runs."""
        self.running -= 1
        self.queued += 1
        try:
            yield
        finally:
            self.queued -= 1
            self.running += 1

    def take_over(self, other: PeerCounts) -> None:
        """Add the counts of a peer that is away and has nothing open."""
        self.last_seen = max(self.last_seen, other.last_seen)
        self.requests += other.requests
        self.refused += other.refused
        self.failed += other.failed
        self.received += other.received
        self.sent += other.sent


class Peers:
    """The counts of all peers; the one that connected last is the last one."""

    def __init__(self, maximum: int = MAX_PEERS) -> None:
        self._maximum = maximum
        self._known: dict[SpiffeId, PeerCounts] = {}
        self._other: PeerCounts | None = None

    def __iter__(self) -> Iterator[PeerCounts]:
        yield from self._known.values()
        if self._other is not None:
            yield self._other

    def connected(self, peer: SpiffeId, now: datetime) -> PeerCounts:
        """Count a connection; its owner counts on what it is given, until `disconnected`."""
        counts = self._known.pop(peer, None)
        if counts is None and self._has_room():
            counts = PeerCounts(str(peer), now)
        if counts is None:
            counts = self._others(now)
        else:
            self._known[peer] = counts
        counts.connections += 1
        counts.last_seen = now
        return counts

    def disconnected(self, counts: PeerCounts, now: datetime) -> None:
        """Count the end of a connection."""
        counts.connections -= 1
        counts.last_seen = now

    def _has_room(self) -> bool:
        if len(self._known) < self._maximum:
            return True
        away = [peer for peer, counts in self._known.items() if not counts.connections]
        if not away:
            return False
        longest = min(away, key=lambda peer: self._known[peer].last_seen)
        gone = self._known.pop(longest)
        self._others(gone.last_seen).take_over(gone)
        return True

    def _others(self, seen: datetime) -> PeerCounts:
        if self._other is None:
            self._other = PeerCounts(OTHER, seen)
        return self._other
