"""What all connections of mode `http` share: settings, limits, and the slots for requests."""

from __future__ import annotations

import math

import structlog

from sidecar.adapters.backend_health import BackendHealth
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.current_policy import CurrentPolicy
from sidecar.adapters.lifelines import Lifelines
from sidecar.adapters.lingering import Ending
from sidecar.adapters.relay import Relay
from sidecar.adapters.slots import Slots, Turns
from sidecar.adapters.tls import CurrentIdentity, TlsStream
from sidecar.core.config import Config, LimitsTable
from sidecar.core.flood import host_of
from sidecar.core.http_answers import Answerer
from sidecar.core.ledger import Ledger
from sidecar.core.limits import RequestSlots, Ticket
from sidecar.core.policy import Rule
from sidecar.core.refusal import Refusal
from sidecar.core.spiffe_id import SpiffeId
from sidecar.http_mode.admission import Admission, RefusedError
from sidecar.http_mode.connection import HttpConnection, Shared
from sidecar.http_mode.drain import Drain

log = structlog.get_logger()


class HttpMode:
    """Serves peers in mode `http`."""

    def __init__(
        self,
        config: Config,
        current: CurrentIdentity,
        policy: CurrentPolicy,
        slots: Slots,
        relay: Relay,
        *,
        lifelines: Lifelines,
        ledger: Ledger,
        health: BackendHealth,
    ) -> None:
        self._ledger, self._health = ledger, health
        self._connections, self._policy, self._lifelines = slots, policy, lifelines
        self._relay = relay
        self._admission = Admission(current, policy, config.limits)
        self._slots = WaitingSlots(config.limits)
        self._drain = Drain()
        self._shared = self._made_of(config)

    def _made_of(self, config: Config) -> Shared:
        table = config.backend
        return Shared(
            config=config,
            relay=self._relay,
            admission=self._admission,
            answerer=Answerer(config.cors.cors() if config.cors else None, config.response_headers),
            health=self._health,
            slots=self._slots,
            drain=self._drain,
            ledger=self._ledger,
            host=table.authority,
            keeps_host=table.host == "keep",
        )

    @property
    def requests(self) -> RequestSlots:
        """Give the slots for requests, of all connections."""
        return self._slots.slots

    def apply(self, config: Config) -> None:
        """Serve new connections by another configuration; old ones end with their next answer."""
        moved = config.backend.address != self._shared.config.backend.address
        self._shared.is_old = True
        self._admission.limits = config.limits
        self._slots.apply(config.limits)
        self._shared = self._made_of(config)
        if moved:
            self._drain.end_idle()  # their next request would go to where the backend was

    async def serve(self, peer: TlsStream, address: str) -> Ending:
        """Serve the peer's requests, or refuse the peer."""
        connection = HttpConnection(self._shared, peer, address)
        decision = self._policy.policy.decide(peer.peer)
        if not decision.allowed and not await self._knows_by_now(connection, peer, address):
            log.warning("peer refused", **connection.who, reason=decision.reason)
            if not connection.has_answered:
                self._refused(peer, address, "peer_not_admitted", decision.reason)
            return Ending.COMPLETE
        async with self._connections.connection(
            peer.peer, decision.connections, self._make_room
        ) as refused:
            if not refused:
                with self._lifelines.watch(peer, connection.end, is_one_answer=False) as lifeline:
                    return await connection.serve(lifeline)
                return Ending.TRUNCATED  # it was cut
        log.warning("peer refused", **connection.who, reason=refused)
        self._refused(peer, address, "too_many_connections", refused)
        return Ending.COMPLETE

    def _make_room(self, peer: SpiffeId, is_full: bool) -> None:
        connections_of = self._connections.connections_of
        self._drain.make_room(peer, is_full=is_full, connections_of=connections_of)

    def _refused(self, peer: TlsStream, address: str, code: str, reason: str) -> None:
        self._ledger.denied(code)
        self._ledger.refused(read_clocks().wall, address, peer.peer, reason)

    async def _knows_by_now(
        self, connection: HttpConnection, peer: TlsStream, address: str
    ) -> bool:
        """Wait with a stranger for its request, and tell it why it gets no answer.

        In a slot that gives way, and not for long: it takes nothing from those whom policy knows.
        True if policy has come to know it meanwhile.
        """
        known = False
        with self._connections.handshake(host_of(address)):
            if await connection.wait(self._shared.config.timeouts.handshake):
                known = self._policy.policy.decide(peer.peer).allowed
                if not known:
                    await connection.serve()
        return known

    def drain(self) -> None:
        """Let no connection wait for another request."""
        self._shared.drain.begin()


class WaitingSlots:
    """The slots for requests, and those who wait for one."""

    def __init__(self, table: LimitsTable) -> None:
        self._seconds = table.queue_seconds
        self._turns = Turns(table.concurrent_requests, table.queued_requests, table.of_one_peer)

    @property
    def slots(self) -> RequestSlots:
        """Give what counts them."""
        return self._turns.slots

    def apply(self, table: LimitsTable) -> None:
        """Go on with other limits; who runs already goes on, who may run now does."""
        self._seconds = table.queue_seconds
        self._turns.resize(table.concurrent_requests, table.queued_requests, table.of_one_peer)

    def enter(self, peer: str, rule: Rule) -> Ticket:
        """Give a ticket that runs or waits; raise `RefusedError` when too many wait."""
        ticket = self._turns.enter(peer, rule.limits.concurrent_requests, rule.name)
        if ticket is None:
            raise RefusedError(self._busy(), "too many requests wait already")
        return ticket

    async def wait(self, ticket: Ticket) -> None:
        """Wait until it runs; raise `RefusedError` if that takes too long."""
        if not await self._turns.wait(ticket, self._seconds):
            raise RefusedError(self._busy())

    def leave(self, ticket: Ticket) -> None:
        """Give it back, and wake those who may run now."""
        self._turns.leave(ticket)

    def _busy(self) -> Refusal:
        text = f"the model server is busy: no place for this request within {self._seconds:g} s"
        return Refusal(503, "busy", text, max(1, math.ceil(self._seconds)))
