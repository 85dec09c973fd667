"""The admitted connections: what is known of each, and how it is told to end.

A `Lifeline` is one connection, from its admission to its end. Its mode says what it is doing;
whoever judges it says that no new request may begin, or cuts it. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol

import trio

from sidecar.core.spiffe_id import SpiffeId


class ProvenPeer(Protocol):
    """What is judged of a peer; the identity is what its handshake was made with."""

    peer: SpiffeId
    identity: Any
    not_before: datetime
    not_after: datetime
    fingerprint: str

    def prove_again(self, identity: Any, now: datetime) -> None:
        """Judge it by another identity's bundles, or raise `PeerError`."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class Lifeline:
    """One connection.

    `started` and `revoked_at` (the first "no" to its peer) are trio's time. `request` is the
    method and path of the request that is running. `ended` says why no new one may begin.
    """

    peer: ProvenPeer
    started: float
    on_end: Callable[[], None]
    is_one_answer: bool  # a stream: there is no moment between two answers at which it could end
    others: set[Lifeline] = field(repr=False)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    request: tuple[str, str] | None = None
    revoked_at: float | None = None
    ended: str = ""
    was_cut: bool = False

    def __enter__(self) -> Lifeline:
        self.others.add(self)
        self.scope.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Leave the connections; a cut ends here, without an exception."""
        self.others.discard(self)
        self.on_end = _nothing  # what it leads to leads back to us, and holds the connection
        return self.scope.__exit__(kind, error, trace)

    def end(self, reason: str) -> None:
        """Let no new request begin; a running answer goes on."""
        if not self.ended:
            self.ended = reason
            self.on_end()

    def cut(self, reason: str) -> None:
        """End what is running; between two requests there is nothing to cut."""
        self.end(reason)
        if self.is_one_answer or self.request is not None:
            self.ended, self.was_cut = reason, True
            self.scope.cancel()


class Lifelines:
    """All admitted connections, and those of them that nobody has judged yet."""

    def __init__(self) -> None:
        self.all: set[Lifeline] = set()
        self.new: list[Lifeline] = []
        self.news = trio.Event()

    def watch(
        self, peer: ProvenPeer, on_end: Callable[[], None], *, is_one_answer: bool
    ) -> Lifeline:
        """Give the lifeline of a connection, which is watched as long as it is entered."""
        lifeline = Lifeline(peer, trio.current_time(), on_end, is_one_answer, self.all)
        self.new.append(lifeline)
        self.news.set()
        return lifeline

    def take_new(self) -> list[Lifeline]:
        """Give those that have come since the last time."""
        new, self.new = self.new, []
        self.news = trio.Event()
        return [lifeline for lifeline in new if lifeline in self.all]


def _nothing() -> None:
    """Of a connection that has ended nothing more can end."""
