"""Story: connections follow identity, bundles, policy and clock.

    something changes, or a moment that was noted has come
    core.lifetime     what ends this connection, since when, with how much grace -> verdict
    lifelines         no new request may begin; or the connection is cut

Nothing is polled: a change of identity or policy has all connections judged anew, and otherwise
each is judged at the moment at which time alone changes its verdict. Only the wall clock is
looked at from time to time: it may jump, and then all that was noted by it is wrong.
"""

from __future__ import annotations

import heapq
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.current_policy import CurrentPolicy
from sidecar.adapters.lifelines import Lifeline, Lifelines
from sidecar.adapters.tls import CurrentIdentity, ServerIdentity
from sidecar.core.config import ConnectionsTable
from sidecar.core.errors import PeerError
from sidecar.core.identity_state import Clocks
from sidecar.core.lifetime import MAX_AGE, NEVER, NO_IDENTITY, PEER_EXPIRED, Ending, judge
from sidecar.core.svid import seconds_left

# The longest time between two looks at the wall clock, and what is no jump of it.
_CLOCK_CHECK_SECONDS = 5.0
_JUMP_SECONDS = 1.0
# Judged for so long between two turns of everybody else; a proof takes a part of a millisecond.
_TURN_SECONDS = 0.003
# So many that have ended may be among those that are noted, beside as many as live.
_SPARE = 64


@dataclass(frozen=True, slots=True)
class _Now:
    """The clocks of one moment, and the identity to serve with, if there is one."""

    clocks: Clocks
    time: float  # trio's
    identity: ServerIdentity | None


class LifeKeeper:
    """Judges the connections of a daemon; `table` may be replaced."""

    def __init__(
        self,
        lifelines: Lifelines,
        current: CurrentIdentity,
        policy: CurrentPolicy,
        table: ConnectionsTable,
    ) -> None:
        self.table = table
        self._lifelines, self._current, self._policy = lifelines, current, policy
        self._all = True  # have to be judged, and not only those whose moment has come
        # Weak: one that has ended is not kept, with all that its TLS takes, until its moment.
        self._due: list[tuple[float, int, weakref.ref[Lifeline]]] = []
        self._number = itertools.count()
        self._ahead = _wall_ahead()
        self._unusable_since: float | None = None
        # Whether the bundles of the moment prove a peer: the same for all of its connections.
        self._proofs: dict[str, str] = {}
        self._proofs_of: ServerIdentity | None = None

    async def run(self) -> None:
        """Judge for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear, lambda: self._current.changed)
            nursery.start_soon(self._hear, lambda: self._policy.changed)
            while True:
                # Since everybody was judged: a clock can also be set by many small steps.
                jumped = abs(_wall_ahead() - self._ahead) > _JUMP_SECONDS
                self._all = self._all or jumped
                await self._judge(self._whose_moment_has_come())
                with trio.move_on_at(self._next_look()):
                    await self._lifelines.news.wait()

    def settings_changed(self, table: ConnectionsTable) -> None:
        """Judge everybody by other graces."""
        self.table, self._all = table, True
        self._lifelines.news.set()

    async def _hear(self, event: Callable[[], trio.Event]) -> None:
        while True:
            await event().wait()
            self._all = True
            self._lifelines.news.set()

    def _whose_moment_has_come(self) -> list[Lifeline]:
        come, now = self._lifelines.take_new(), trio.current_time()
        if self._all:
            self._all, self._ahead = False, _wall_ahead()
            self._due.clear()
            return list(self._lifelines.all)
        if len(self._due) > 2 * len(self._lifelines.all) + _SPARE:
            # Those that have ended meanwhile, which would stay until their moment.
            self._due = [due for due in self._due if due[2]() in self._lifelines.all]
            heapq.heapify(self._due)
        while self._due and self._due[0][0] <= now:
            lifeline = heapq.heappop(self._due)[2]()
            if lifeline is not None:
                come.append(lifeline)
        return come

    def _next_look(self) -> float:
        soon = trio.current_time() + _CLOCK_CHECK_SECONDS
        return min(soon, self._due[0][0]) if self._due else soon

    async def _judge(self, lifelines: Iterable[Lifeline]) -> None:
        began = trio.current_time()
        for lifeline in lifelines:
            if lifeline in self._lifelines.all and not lifeline.was_cut:
                self._judge_one(lifeline, self._now())
            if trio.current_time() - began > _TURN_SECONDS:
                await trio.lowlevel.checkpoint()
                began = trio.current_time()

    def _now(self) -> _Now:
        clocks, time = read_clocks(), trio.current_time()
        identity = self._current.serving(clocks)
        if identity is not None:
            self._unusable_since = None
        else:
            # It may have expired while the host slept: then its grace has run since.
            end = self._current.standing.not_after
            gone = (clocks.wall - end).total_seconds() if end is not None else 0.0
            since = time - max(gone, 0.0)
            self._unusable_since = min(since, self._unusable_since or since)
        return _Now(clocks, time, identity)

    def _judge_one(self, lifeline: Lifeline, now: _Now) -> None:
        verdict = judge(self._endings(lifeline, now))
        if verdict.cut_now:
            lifeline.cut(verdict.reason)
            return
        if verdict.reason:
            lifeline.end(verdict.reason)
        if verdict.look_again_in < NEVER:
            # The clocks differ a little: a hair too early would be too early for the verdict.
            at = now.time + verdict.look_again_in + 0.001
            heapq.heappush(self._due, (at, next(self._number), weakref.ref(lifeline)))

    def _endings(self, lifeline: Lifeline, now: _Now) -> Iterator[Ending]:
        table = self.table
        left = seconds_left(lifeline.peer.not_after, now.clocks.wall)
        yield Ending(PEER_EXPIRED, left, table.expiry_grace_seconds)
        yield Ending(NO_IDENTITY, self._own(now), table.expiry_grace_seconds)
        reason = self._revoked(lifeline, now)
        if reason:
            if lifeline.revoked_at is None:
                lifeline.revoked_at = now.time
            since = lifeline.revoked_at - now.time
            yield Ending(reason, since, table.revoked_grace_seconds)
        else:
            lifeline.revoked_at = None
        if table.max_age_seconds:
            at = lifeline.started + table.max_age_seconds - now.time
            yield Ending(MAX_AGE, at, 0.0 if lifeline.is_one_answer else NEVER)

    def _own(self, now: _Now) -> float:
        """Give the seconds until we have no identity to serve with."""
        if self._unusable_since is not None:
            return self._unusable_since - now.time
        grace = self._current.denied_grace_seconds
        return self._current.standing.seconds_to_change(now.clocks, grace)

    def _revoked(self, lifeline: Lifeline, now: _Now) -> str:
        """Say why the peer, or what it is being answered, would not be admitted now."""
        policy, peer = self._policy.policy, lifeline.peer
        if lifeline.request is None:
            allowed, reason = (decision := policy.decide(peer.peer)).allowed, decision.reason
        else:
            asked = policy.decide_request(peer.peer, *lifeline.request)
            allowed, reason = asked.allowed, asked.reason
        if not allowed:
            return reason
        if now.identity is None or now.identity is peer.identity:
            return ""
        return self._not_proven(lifeline, now.identity, now.clocks)

    def _not_proven(self, lifeline: Lifeline, identity: ServerIdentity, clocks: Clocks) -> str:
        """Hold the peer against the bundles of now; that its time is over is another matter."""
        if identity is not self._proofs_of:
            self._proofs, self._proofs_of = {}, identity
        peer = lifeline.peer
        known = self._proofs.get(peer.fingerprint)
        if known is None:
            try:
                moment = max(peer.not_before, min(clocks.wall, peer.not_after))
                peer.prove_again(identity, moment)
                known = ""
            except PeerError as exc:
                known = exc.message
            self._proofs[peer.fingerprint] = known
        return known


def _wall_ahead() -> float:
    """Give what the wall clock is ahead of the monotonic one: constant, unless it is set."""
    clocks = read_clocks()
    return clocks.wall.timestamp() - clocks.monotonic
