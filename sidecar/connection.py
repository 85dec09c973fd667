"""Story: one peer, from TLS handshake to last byte.

    listener      accepted the socket
    tls           handshake under a deadline; core.peer judges the chain inside of it
    mode          `stream_mode` or `http_mode`: decides, and only then connects to the backend
    connection    ends its side: close_notify if all was said, and a lingering close

Never lets a byte reach the backend before a decision allowed it: under TLS 1.3 a refused peer
sees its own handshake succeed and may already have sent.
"""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from sidecar.adapters.clock import read_clocks
from sidecar.adapters.lingering import Ending, Lingering
from sidecar.adapters.slots import Slots
from sidecar.adapters.tls import (
    CurrentIdentity,
    HandshakeError,
    ServerIdentity,
    TlsStream,
    handshake,
)
from sidecar.core.config import Config
from sidecar.core.errors import PeerError
from sidecar.core.flood import host_of
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.ledger import Ledger

log = structlog.get_logger()

# How long a connection that is cut while the daemon ends may still take.
_CUT_SECONDS = 1.0


class Mode(Protocol):
    """What is done with an authenticated peer."""

    async def serve(self, peer: TlsStream, address: str) -> Ending:
        """Serve the peer; return how our side of its connection is to end."""

    def drain(self) -> None:
        """Let no connection wait for more to do."""

    def apply(self, config: Config) -> None:
        """Serve new connections by another configuration."""


@dataclass(slots=True)
class Service:
    """What every connection is served with; `handshake_seconds` may be changed."""

    current: CurrentIdentity
    slots: Slots
    lingering: Lingering
    handshake_seconds: float
    mode: Mode


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
    ending = Ending.TRUNCATED
    try:
        if peer is not None:
            ending = await service.mode.serve(peer, address)
    finally:
        # After a cut too: closing at once could take from the peer what it was sent before.
        if ending is not Ending.CLOSED:
            with trio.CancelScope() as scope:
                if trio.current_effective_deadline() == -math.inf:
                    scope.shield, scope.deadline = True, trio.current_time() + _CUT_SECONDS
                if peer is not None and ending is Ending.COMPLETE:
                    await service.lingering.close(sock, peer.send_end)
                else:
                    await service.lingering.close(sock)


async def _handshake(sock: socket.socket, address: str, service: Service) -> TlsStream | None:
    """Take the peer in; None, and a line in the log, when it is refused."""
    refused, began = None, trio.current_time()
    with service.slots.handshake(host_of(address)) as slot:
        try:
            identity = _identity(service.current)  # once: a rotation changes no connection
            peer = await handshake(sock, identity, service.handshake_seconds)
            _prove_again(peer, service.current)
        except PeerError as exc:
            # Without its traceback, which holds this frame, which holds the exception: a refused
            # peer's TLS would stay until the collector comes by.
            refused = exc.with_traceback(None)
    if slot.cancelled_caught and service.slots.draining:
        text = "no TLS handshake before the drain ended it"
        refused = PeerError(text, result=HandshakeResult.TIMEOUT)
    elif slot.cancelled_caught:
        text = "too many handshakes, this was the oldest"
        refused = PeerError(text, result=HandshakeResult.DISPLACED)
    if refused is None:
        service.current.ledger.handshake(HandshakeResult.ACCEPTED, trio.current_time() - began)
        return peer
    _tell(refused, address, service.current.ledger)
    return None


def _identity(current: CurrentIdentity) -> ServerIdentity:
    """Give what is served with now, or raise `PeerError`."""
    identity = current.serving(read_clocks())
    if identity is None:
        raise PeerError("no identity to serve with", result=HandshakeResult.NO_IDENTITY)
    return identity


def _prove_again(peer: TlsStream, current: CurrentIdentity) -> None:
    """Hold the peer against what has changed during its handshake."""
    identity = _identity(current)
    if identity is not peer.identity:
        peer.prove_again(identity, read_clocks().wall)


def _tell(refused: PeerError, address: str, ledger: Ledger) -> None:
    """Count and log that a peer did not get in."""
    ledger.handshake(HandshakeResult(refused.result))
    if refused.result == HandshakeResult.PROBE:
        log.debug("port probed", address=address)
        return
    claimed = refused.claimed if isinstance(refused, HandshakeError) else None
    ledger.refused(read_clocks().wall, address, claimed or "", refused.message)
    said = {"claimed": claimed} if claimed else {}
    hint = {"hint": refused.hint} if refused.hint else {}
    log.warning("peer refused", address=address, **said, reason=refused.message, **hint)
