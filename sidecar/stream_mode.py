"""Story: one peer's connection in mode `stream`: one decision, then bytes both ways.

    core.policy   SPIFFE ID -> decision
    backend       connects, only now
    relay         moves bytes -> traffic
    stream_mode   writes one log line

Never looks into the bytes, so what a peer asks for is not decided here: for that there is mode
`http`.
"""

from __future__ import annotations

import structlog
import trio

from sidecar.adapters import backend
from sidecar.adapters.backend_health import BackendHealth
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.current_policy import CurrentPolicy
from sidecar.adapters.lifelines import Lifeline, Lifelines
from sidecar.adapters.lingering import Ending
from sidecar.adapters.relay import Relay, Traffic
from sidecar.adapters.slots import Slots
from sidecar.adapters.tls import TlsStream
from sidecar.core.config import Config
from sidecar.core.errors import BackendError
from sidecar.core.ledger import Ledger
from sidecar.core.policy import Decision

log = structlog.get_logger()


class StreamMode:
    """What all connections of mode `stream` share."""

    def __init__(
        self,
        config: Config,
        policy: CurrentPolicy,
        slots: Slots,
        relay: Relay,
        *,
        lifelines: Lifelines,
        ledger: Ledger,
        health: BackendHealth,
    ) -> None:
        self._config, self._ledger, self._health = config, ledger, health
        self._policy, self._slots, self._relay = policy, slots, relay
        self._lifelines = lifelines

    async def serve(self, peer: TlsStream, address: str) -> Ending:
        """Decide and serve; a refused peer sees a clean end before any byte."""
        who = {"address": address, "peer": str(peer.peer), "serial": peer.serial}
        decision = self._policy.policy.decide(peer.peer)
        if not decision.allowed:
            log.warning("peer refused", **who, rule=decision.rule, reason=decision.reason)
            self._ledger.denied("peer_not_admitted")
            self._ledger.refused(read_clocks().wall, address, peer.peer, decision.reason)
            return Ending.COMPLETE
        async with self._slots.connection(peer.peer, decision.connections) as refused:
            if not refused:
                with self._lifelines.watch(peer, _nothing, is_one_answer=True) as lifeline:
                    return await self._forward(peer, who, decision, lifeline)
                return Ending.TRUNCATED  # it was cut
        log.warning("peer refused", **who, reason=refused)
        self._ledger.denied("too_many_connections")
        self._ledger.refused(read_clocks().wall, address, peer.peer, refused)
        return Ending.COMPLETE

    def apply(self, config: Config) -> None:
        """Serve new connections by another configuration."""
        self._config = config

    def drain(self) -> None:
        """Let running streams end by themselves: what they are at cannot be seen."""

    async def _forward(
        self, peer: TlsStream, who: dict[str, str], decision: Decision, lifeline: Lifeline
    ) -> Ending:
        """Connect to the backend, only now, and relay until the end."""
        started, traffic = trio.current_time(), Traffic()
        counts = self._ledger.connected(peer.peer, read_clocks().wall)
        served = True
        try:
            served = await self._move(peer, who, decision.rule, traffic)
        finally:
            self._ledger.moved(counts, traffic.received, traffic.sent)
            self._ledger.disconnected(counts, read_clocks().wall)
            self._ledger.connection_ended(trio.current_time() - started, lifeline.ended)
            if served:
                log.info(
                    "connection closed",
                    **who,
                    decision="allowed",
                    rule=decision.rule,
                    received=traffic.received,
                    sent=traffic.sent,
                    seconds=round(trio.current_time() - started, 3),
                    end=f"cut: {lifeline.ended}" if lifeline.was_cut else traffic.end,
                )
        return Ending.CLOSED if traffic.end == "closed" else Ending.TRUNCATED

    async def _move(
        self, peer: TlsStream, who: dict[str, str], rule: str | None, traffic: Traffic
    ) -> bool:
        """Relay until the end; False, and a line in the log, without a backend."""
        address, seconds = self._config.backend.address, self._config.timeouts.backend_connect
        try:
            target = await backend.connect(address, seconds)
        except BackendError as exc:
            self._health.used(well=False)
            self._ledger.backend_failed("unreachable")
            log.warning(
                "backend unreachable",
                **who,
                decision="allowed",
                rule=rule,
                outcome="backend_failed",
                reason=exc.message,
                hint=exc.hint,
            )
            return False
        self._health.used(well=True)
        with target:
            await self._relay.relay(peer, target, traffic)
        if traffic.end.startswith("backend:"):
            self._ledger.backend_failed("broke")
        return True


def _nothing() -> None:
    """A stream has no next request that could be kept from beginning."""
