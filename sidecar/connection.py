"""Story: one peer, from TLS handshake to last byte.

    listener      accepted the socket
    tls           handshake under a deadline; core.peer judges the chain inside of it
    core.policy   SPIFFE ID -> decision
    backend       connects, only now
    relay         moves bytes -> traffic
    connection    writes one log line

Never lets a byte reach the backend before a decision allowed it: under TLS 1.3 a refused peer
sees its own handshake succeed and may already have sent.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import structlog
import trio

from sidecar.adapters import backend
from sidecar.adapters.clock import read_clocks
from sidecar.adapters.listener import Slots
from sidecar.adapters.relay import Relay, Traffic
from sidecar.adapters.tls import CurrentIdentity, HandshakeError, TlsStream, handshake
from sidecar.core.config import BackendTable, TimeoutsTable
from sidecar.core.errors import BackendError
from sidecar.core.policy import Decision, Policy

log = structlog.get_logger()

# How long a refused peer may take to read why, before its connection is dropped.
_FAREWELL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Service:
    """What every connection is served with."""

    current: CurrentIdentity
    policy: Policy
    slots: Slots
    relay: Relay
    backend: BackendTable
    timeouts: TimeoutsTable


async def serve(sock: socket.socket, address: str, service: Service) -> None:
    """Serve one peer, and whatever happens to it, only this one."""
    try:
        with sock:
            await _serve(sock, address, service)
    except Exception:
        # Ours to mend, but one connection's: the others and the daemon go on.
        log.exception("connection failed", address=address)


async def _serve(sock: socket.socket, address: str, service: Service) -> None:
    peer = await _handshake(sock, address, service)
    served = peer is not None and await _admit(peer, address, service)
    if not served and service.slots.room_for_handshakes:
        # In a handshake's slot, so that whoever lingers over it gives way to newcomers; and only
        # if there is room, so that nobody has to give way to a farewell.
        with service.slots.handshake():
            await _farewell(sock, peer)


async def _handshake(sock: socket.socket, address: str, service: Service) -> TlsStream | None:
    """Take the peer in; None, and a line in the log, when it is refused."""
    identity = service.current.serving(read_clocks())  # once: a rotation changes no connection
    if identity is None:
        log.warning("peer refused", address=address, reason="no identity to serve with")
        return None
    peer = None
    with service.slots.handshake() as slot:
        try:
            peer = await handshake(sock, identity, service.timeouts.handshake)
        except HandshakeError as exc:
            log.warning("peer refused", address=address, claimed=exc.claimed, reason=exc.message)
            return None
    if slot.cancelled_caught:
        reason = "too many handshakes, this was the oldest"
        log.warning("peer refused", address=address, reason=reason)
    return peer


async def _admit(peer: TlsStream, address: str, service: Service) -> bool:
    """Decide and serve; False, and a line in the log, when there was nothing to serve."""
    decision = service.policy.decide(peer.peer)
    if not decision.allowed:
        reason = decision.reason
        log.warning("peer refused", **_who(peer, address), rule=decision.rule, reason=reason)
        return False
    with service.slots.connection() as free:
        if free:
            return await _forward(peer, address, decision, service)
    log.warning("peer refused", **_who(peer, address), reason="too many connections")
    return False


async def _forward(peer: TlsStream, address: str, decision: Decision, service: Service) -> bool:
    """Connect to the backend, only now, and relay until the end; False if there is no backend."""
    try:
        target = await backend.connect(service.backend.address, service.timeouts.backend_connect)
    except BackendError as exc:
        who = _who(peer, address)
        log.warning("backend unreachable", **who, reason=exc.message, hint=exc.hint)
        return False
    started = trio.current_time()
    traffic = Traffic()
    try:
        with target:
            await service.relay.relay(peer, target, traffic)
        if traffic.backend_broke:
            # Its last bytes are still on their way to the peer; no close_notify after them.
            await _farewell(peer.sock, None)
    finally:
        log.info(
            "connection closed",
            **_who(peer, address),
            decision="allowed",
            rule=decision.rule,
            received=traffic.received,
            sent=traffic.sent,
            seconds=round(trio.current_time() - started, 3),
            end=traffic.end,
        )
    return True


def _who(peer: TlsStream, address: str) -> dict[str, str]:
    return {"address": address, "peer": str(peer.peer), "serial": peer.serial}


async def _farewell(sock: socket.socket, peer: TlsStream | None) -> None:
    """Let a refused peer read the alert or close_notify: closing on unread bytes would reset it."""
    try:
        if peer is not None:
            peer.send_end()
        sock.shutdown(socket.SHUT_WR)
        with trio.move_on_after(_FAREWELL_SECONDS):
            while True:
                await trio.lowlevel.wait_readable(sock)
                if not sock.recv(65536):
                    return
    except OSError:
        return  # it is gone already
