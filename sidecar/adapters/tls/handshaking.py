"""A peer, from its first byte to a verified stream, or to the reason why not."""

from __future__ import annotations

import socket
from contextlib import suppress
from datetime import UTC, datetime
from errno import errorcode

import trio
from OpenSSL import SSL

from sidecar.adapters.tls.identity import ServerIdentity
from sidecar.adapters.tls.judgement import Presented
from sidecar.adapters.tls.stream import TlsStream, openssl_reason, openssl_words
from sidecar.core.errors import PeerError
from sidecar.core.first_bytes import LOOKED_AT, may_be_tls, other_protocol, too_old
from sidecar.core.handshake_result import HandshakeResult, openssl_result

# One step of one handshake in each pass of the scheduler: it takes up to a millisecond, and the
# streams of others come in between.
_TURN = trio.Lock()
# How long a peer that speaks no TLS may take to say what it speaks.
_SAYS_SECONDS = 0.3


class HandshakeError(PeerError):
    """A peer that did not get in; `claimed` is the ID it presented, unproven and quoted."""

    def __init__(self, message: str, claimed: str, result: str, hint: str | None = None) -> None:
        super().__init__(message, hint, result=result)
        self.claimed = claimed


async def handshake(sock: socket.socket, identity: ServerIdentity, seconds: float) -> TlsStream:
    """Take a peer through the handshake, or raise `HandshakeError` with the reason."""
    presented = Presented(identity.verifier, lambda: datetime.now(UTC))
    connection = SSL.Connection(identity.context, sock)
    connection.set_app_data(presented)
    connection.set_accept_state()
    with trio.move_on_after(seconds) as deadline:
        first = b""
        try:
            first = await _first_bytes(sock)
            await _shake(connection, sock)
        except PeerError as exc:  # not TLS, or no protocol in it that we speak
            raise HandshakeError(exc.message, presented.claimed, exc.result, exc.hint) from exc
        except SSL.Error as exc:
            if "unsupported protocol" in openssl_words(exc):
                old = too_old(first)
                raise HandshakeError(old.message, "none", old.result, old.hint) from exc
            left = "the peer ended the connection during the handshake"
            reason = presented.refusal or openssl_reason(exc, ended=left)
            result = presented.result if presented.refusal else openssl_result(openssl_words(exc))
            raise HandshakeError(reason, presented.claimed, result) from exc
    if deadline.cancelled_caught:
        text = f"no TLS handshake within {seconds:g} s"
        raise HandshakeError(text, presented.claimed, HandshakeResult.TIMEOUT)
    if presented.peer is None:
        # Cannot happen as long as OpenSSL calls back for the leaf; nobody gets in if it does not.
        result = HandshakeResult.BAD_CERTIFICATE
        raise HandshakeError("certificate not judged", presented.claimed, result)
    # What was gathered is garbage now; an idle connection should not carry it.
    connection.set_app_data(None)
    return TlsStream(connection, sock, presented.peer, identity)


async def _first_bytes(sock: socket.socket) -> bytes:
    """Look at the first bytes without taking them; or raise `PeerError`: they are no TLS."""
    await trio.lowlevel.wait_readable(sock)
    try:
        first = sock.recv(LOOKED_AT, socket.MSG_PEEK)
    except BlockingIOError:
        return b""  # readable for a moment only; OpenSSL waits
    except OSError as exc:
        text = f"{errorcode.get(exc.errno or 0, str(exc))} before a byte"
        raise PeerError(text, result=HandshakeResult.PROBE) from exc
    if not first:
        # By FIN, or by RST as above: a load balancer asks so whether we listen.
        raise PeerError("the connection ended before a byte", result=HandshakeResult.PROBE)
    if may_be_tls(first[0]):
        return first
    said = b""
    with trio.move_on_after(_SAYS_SECONDS), suppress(OSError):
        while len(said) < LOOKED_AT:
            await trio.lowlevel.wait_readable(sock)
            if not (data := sock.recv(LOOKED_AT - len(said))):
                break
            said += data
    raise other_protocol(said or first)


async def _shake(connection: SSL.Connection, sock: socket.socket) -> None:
    while True:
        try:
            async with _TURN:
                connection.do_handshake()
        except SSL.WantReadError:
            await trio.lowlevel.wait_readable(sock)
        except SSL.WantWriteError:
            await trio.lowlevel.wait_writable(sock)
        else:
            return
