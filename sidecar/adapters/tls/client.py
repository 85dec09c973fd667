"""The client's side of a handshake: presents our SVID, and judges the server by SPIFFE alone.

Gets a connected socket and our identity, gives a `ClientStream` and what both ends agreed on, or
raises `ClientHandshakeError`, which keeps what the server presented. The server is judged inside
of the handshake by the rules that peers are judged by, before our own certificate is sent, and
never by a host name. For a person who looks for a fault: what a server says in place of TLS is
kept, and a refusal of ours is told from one of the server's.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import trio
from cryptography import x509
from OpenSSL import SSL

from sidecar.adapters.tls.client_stream import ClientStream
from sidecar.adapters.tls.identity import HTTP, ServerIdentity
from sidecar.adapters.tls.judgement import Presented, judge_peers
from sidecar.adapters.tls.stream import openssl_words
from sidecar.core.errors import PeerError
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.probe.faults import HandshakeEnd
from sidecar.core.probe.report import Handshake
from sidecar.core.spiffe_id import SpiffeId

# What a sidecar speaks, and one version more, so that an old server can be described.
_TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_HANDSHAKE_RECORD, _ALERT_RECORD = 0x16, 0x15  # RFC 8446 5.1 (Record Layer)
_MOST_SAID = 512
# How long a server that speaks no TLS may take to finish what it says.
_SAYS_SECONDS = 0.3
_LAST_WORD_SECONDS = 1.0


class ClientHandshakeError(PeerError):
    """A server that we did not get in with; `leaf` is what it presented, unproven."""

    def __init__(
        self,
        end: HandshakeEnd,
        message: str,
        *,
        leaf: x509.Certificate | None = None,
        said: bytes = b"",
        result: str = HandshakeResult.PROTOCOL,
    ) -> None:
        super().__init__(message, result=result)
        self.end = end
        self.leaf = leaf
        self.said = said


@dataclass(frozen=True, slots=True)
class Shaken:
    """What came of a handshake."""

    stream: ClientStream
    peer: SpiffeId
    agreed: Handshake
    leaf: x509.Certificate  # the server's, proven


async def client_handshake(
    sock: socket.socket,
    identity: ServerIdentity,
    *,
    server_name: str,
    speaks_http: bool,
    seconds: float,
) -> Shaken:
    """Present our SVID and judge the server, or raise `ClientHandshakeError`.

    `server_name` is for a proxy that picks a certificate by it, and empty for an address.
    """
    judged = Presented(identity.verifier, lambda: datetime.now(UTC))
    states: set[bytes] = set()
    stream = ClientStream(_client_context(identity, states), sock)
    stream.tls.set_app_data(judged)
    if server_name:
        stream.tls.set_tlsext_host_name(server_name.encode("ascii"))
    if speaks_http:
        stream.tls.set_alpn_protos([HTTP])
    with trio.move_on_after(seconds) as deadline:
        try:
            await _shake(stream, sock)
        except SSL.Error as exc:
            failed = _failed(exc, judged, stream)
            with trio.move_on_after(_LAST_WORD_SECONDS):
                await stream.flush()  # our alert
            raise failed from exc
    if deadline.cancelled_caught:
        raise ClientHandshakeError(HandshakeEnd.SILENT, f"no TLS handshake within {seconds:g} s")
    if judged.peer is None:
        # Cannot happen as long as OpenSSL calls back for the leaf; nobody is believed without.
        raise ClientHandshakeError(HandshakeEnd.NOT_TRUSTED, "certificate not judged")
    # OpenSSL tells by its states only whether the server asked for our certificate.
    asked = any(b"read server certificate request" in state for state in states)
    return Shaken(stream, judged.peer, _agreed(stream.tls, asked=asked), judged.chain[0])


def _client_context(identity: ServerIdentity, states: set[bytes]) -> SSL.Context:
    """Make a context for one handshake; OpenSSL could read all of it when it was served with."""
    svid = identity.svid
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_TLS12_CIPHERS)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_certificate(svid.leaf)
    for intermediate in svid.chain[1:]:
        context.add_extra_chain_cert(intermediate)
    context.use_privatekey(svid.private_key)
    judge_peers(context, SSL.VERIFY_PEER)
    context.set_info_callback(lambda one, _where, _code: states.add(one.get_state_string()))
    return context


async def _shake(stream: ClientStream, sock: socket.socket) -> None:
    while True:
        try:
            stream.tls.do_handshake()
        except SSL.WantReadError:
            await stream.flush()
            await stream.fill()
            # Before OpenSSL takes it and says "wrong version number".
            if stream.first and stream.first[0] not in (_HANDSHAKE_RECORD, _ALERT_RECORD):
                said = await _all_that_is_said(sock, stream.first)
                raise ClientHandshakeError(HandshakeEnd.NOT_TLS, "not TLS", said=said) from None
        else:
            await stream.flush()
            return


async def _all_that_is_said(sock: socket.socket, first: bytes) -> bytes:
    said = bytearray(first)
    with trio.move_on_after(_SAYS_SECONDS), suppress(OSError):
        while len(said) < _MOST_SAID:
            await trio.lowlevel.wait_readable(sock)
            data = sock.recv(_MOST_SAID - len(said))
            if not data:
                break
            said += data
    return bytes(said)


def _failed(exc: SSL.Error, judged: Presented, stream: ClientStream) -> ClientHandshakeError:
    leaf = judged.chain.get(0)
    if judged.refusal:
        end = HandshakeEnd.NOT_TRUSTED
        return ClientHandshakeError(end, judged.refusal, leaf=leaf, result=judged.result)
    words = stream.reason(exc)
    if not openssl_words(exc):
        return ClientHandshakeError(HandshakeEnd.CLOSED, words, leaf=leaf)
    if " alert " not in words:
        return ClientHandshakeError(HandshakeEnd.PROTOCOL, words, leaf=leaf)
    # Up to TLS 1.2 the server looks at our certificate before it ends the handshake.
    end = HandshakeEnd.ALERT if judged.peer is None else HandshakeEnd.OWN_SVID
    return ClientHandshakeError(end, alert_words(words), leaf=leaf)


def alert_words(reason: str) -> str:
    """Give an alert's name alone: OpenSSL puts a version before it that says nothing."""
    _, alert, name = reason.partition(" alert ")
    return name if alert else reason


def _agreed(connection: SSL.Connection, *, asked: bool) -> Handshake:
    return Handshake(
        version=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "",
        group=connection.get_group_name() or "",
        alpn=connection.get_alpn_proto_negotiated().decode("ascii", "replace"),
        asked=asked,
    )
