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
from sidecar.adapters.listener import Slots, drain_unread
from sidecar.adapters.policy_file import CurrentPolicy
from sidecar.adapters.relay import Relay, Traffic
from sidecar.adapters.tls import TlsStream
from sidecar.core.config import Config
from sidecar.core.errors import BackendError
from sidecar.core.policy import Decision

log = structlog.get_logger()


class StreamMode:
    """What all connections of mode `stream` share."""

    def __init__(self, config: Config, policy: CurrentPolicy, slots: Slots, relay: Relay) -> None:
        self._backend, self._timeouts = config.backend, config.timeouts
        self._policy, self._slots, self._relay = policy, slots, relay

    async def serve(self, peer: TlsStream, address: str) -> bool:
        """Decide and serve; False, and a line in the log, when there was nothing to serve."""
        who = {"address": address, "peer": str(peer.peer), "serial": peer.serial}
        decision = self._policy.policy.decide(peer.peer)
        if not decision.allowed:
            log.warning("peer refused", **who, rule=decision.rule, reason=decision.reason)
            return False
        with self._slots.connection() as free:
            if free:
                return await self._forward(peer, who, decision)
        log.warning("peer refused", **who, reason="too many connections")
        return False

    def drain(self) -> None:
        """Let running streams end by themselves: what they are at cannot be seen."""

    async def _forward(self, peer: TlsStream, who: dict[str, str], decision: Decision) -> bool:
        """Connect to the backend, only now, and relay until the end; False without a backend."""
        try:
            target = await backend.connect(self._backend.address, self._timeouts.backend_connect)
        except BackendError as exc:
            log.warning("backend unreachable", **who, reason=exc.message, hint=exc.hint)
            return False
        started = trio.current_time()
        traffic = Traffic()
        try:
            with target:
                await self._relay.relay(peer, target, traffic)
            if traffic.backend_broke:
                # Its last bytes are still on their way to the peer; no close_notify after them.
                await drain_unread(peer.sock)
        finally:
            log.info(
                "connection closed",
                **who,
                decision="allowed",
                rule=decision.rule,
                received=traffic.received,
                sent=traffic.sent,
                seconds=round(trio.current_time() - started, 3),
                end=traffic.end,
            )
        return True
