"""OpenSSL: the server context of one identity, the handshake that judges the peer, the stream.

Gets a `ServerIdentity` and a connected socket, gives a `TlsStream` of a verified peer or raises
`PeerError`. A peer is refused inside the handshake, so that it gets a TLS alert. OpenSSL's trust
store is only a filter here: it holds the union of all bundles, with which any federated
authority could sign for our trust domain; `core.peer` makes the decision.
Never resumes a session: a resumed one would skip that decision.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL, crypto

from sidecar.core.errors import AgentProtocolError, PeerError
from sidecar.core.handshake_result import HandshakeResult, openssl_result
from sidecar.core.identity_state import Clocks, Standing
from sidecar.core.ledger import Ledger
from sidecar.core.peer import (
    MAX_INTERMEDIATES,
    SvidVerifier,
    check_key,
    claimed_id,
    not_proven,
)
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import Bundles, X509Svid, serial_text

RECORD_BYTES = 16384  # RFC 8446 5.1 (Record Layer): the most that one TLS record holds
# TLS 1.2 has no other AEAD suites with forward secrecy; TLS 1.3 brings its own.
_TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
# Verification errors of OpenSSL that a person meets (x509_vfy.h); the rest keep their number.
_OBJECTIONS = {
    2: "the issuer is not in any trust bundle",
    7: "the signature is wrong",
    9: "not yet valid",
    10: "expired",
    18: "self-signed",
    19: "an authority that no trust bundle holds",
    20: "the issuer is not in any trust bundle",
    21: "the issuer is not in any trust bundle",
    22: "the chain is too long",
    26: "not made for TLS clients (keyUsage, extendedKeyUsage)",
    34: "a critical extension that nobody here knows",
    47: "a name that an authority above it does not permit",
    48: "a name that an authority above it excludes",
    66: "the key is too small",
}


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What we serve with: one SVID, the bundles of its update, and the context made of both."""

    svid: X509Svid
    bundles: Bundles = field(repr=False)
    verifier: SvidVerifier = field(repr=False)
    context: SSL.Context = field(repr=False)


@dataclass(slots=True)
class CurrentIdentity:
    """The identity of the moment and our standing with the agent: one writer, many readers.

    Readers take `serving()` once per connection, so that a rotation never changes a connection
    half-way. `standing` is kept beside it because an identity may be there and yet not usable;
    `ledger` because whoever acts by it writes down what came of it.
    """

    denied_grace_seconds: float
    identity: ServerIdentity | None = None
    standing: Standing = field(default_factory=Standing)
    changed: trio.Event = field(default_factory=trio.Event)
    ledger: Ledger = field(default_factory=lambda: Ledger(datetime.now(UTC)))
    asks: int = 0
    on_ask: Callable[[], None] | None = None

    def replace(self, identity: ServerIdentity | None, standing: Standing) -> None:
        """Publish a new state and wake whoever waits for `changed`."""
        self.identity, self.standing = identity, standing
        self.changed.set()
        self.changed = trio.Event()

    def ask(self) -> None:
        """Want everything fetched and written now: wakes whoever waits, and the source."""
        self.asks += 1
        self.replace(self.identity, self.standing)
        if self.on_ask is not None:
            self.on_ask()

    def serving(self, clocks: Clocks) -> ServerIdentity | None:
        """Give the identity to serve with, or None: no identity, no service."""
        usable = self.standing.may_serve(clocks, self.denied_grace_seconds)
        return self.identity if usable else None


def server_identity(svid: X509Svid, bundles: Bundles, minimum_version: str) -> ServerIdentity:
    """Build what one update is served with; a new context each time, never a changed one.

    A trust store can only grow, and an authority that left its bundle must go
    (Workload API 4.4, Default Values and Redacted Information). What OpenSSL cannot read is
    `AgentProtocolError`, or costs a federated trust domain its place among the `bundles`.
    """
    authorities = _openssl_authorities(svid.spiffe_id.trust_domain, bundles)
    try:
        context = _server_context(svid, minimum_version)
    except (SSL.Error, crypto.Error, ValueError) as exc:
        raise AgentProtocolError(f"SVID {svid.spiffe_id}: OpenSSL cannot use it: {exc}") from exc
    store = context.get_cert_store()
    assert store is not None
    for of_one_trust_domain in authorities.values():
        for authority in of_one_trust_domain:
            store.add_cert(authority)
    # A bundle may hold an intermediate as its authority.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    usable = {trust_domain: bundles[trust_domain] for trust_domain in authorities}
    return ServerIdentity(svid, usable, SvidVerifier(usable), context)


def _server_context(svid: X509Svid, minimum_version: str) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_VERSIONS[minimum_version])
    context.set_cipher_list(_TLS12_CIPHERS)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle connection gives its buffers back
    context.use_certificate(svid.leaf)
    for intermediate in svid.chain[1:]:
        context.add_extra_chain_cert(intermediate)
    context.use_privatekey(svid.private_key)
    context.check_privatekey()
    context.set_verify_depth(MAX_INTERMEDIATES + 1)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _judge)
    return context


def _openssl_authorities(
    own: TrustDomain, bundles: Bundles
) -> dict[TrustDomain, list[crypto.X509]]:
    """Let OpenSSL read every authority; it is a little stricter than cryptography."""
    authorities = {}
    for trust_domain, bundle in bundles.items():
        try:
            authorities[trust_domain] = [
                crypto.X509.from_cryptography(authority) for authority in bundle.authorities
            ]
        except (crypto.Error, ValueError) as exc:
            if trust_domain == own:
                raise AgentProtocolError(f"bundle of {own}: OpenSSL cannot read it: {exc}") from exc
    return authorities


@dataclass(slots=True)
class _Presented:
    """What one peer presented, gathered by OpenSSL's callbacks from the root to the leaf."""

    verifier: SvidVerifier
    now: Callable[[], datetime]
    chain: dict[int, x509.Certificate] = field(default_factory=dict)
    objection: str = ""
    refusal: str = ""
    result: str = HandshakeResult.BAD_CERTIFICATE
    claimed: str = "none"
    peer: SpiffeId | None = None

    def judge(self, certificate: x509.Certificate, error: int, depth: int) -> bool:
        """Take one certificate; at the leaf decide, or raise `PeerError`.

        OpenSSL's objection always counts.
        """
        self.chain[depth] = certificate
        if error and not self.objection:
            self.objection = _OBJECTIONS.get(error, f"OpenSSL verification error {error}")
        if self.peer is not None and error:
            # Name constraints are looked at after the leaf was judged, and by OpenSSL only.
            claimed, self.peer = self.peer, None
            raise not_proven(claimed, self.objection)
        if depth > 0:
            check_key(certificate)
            return True  # on to the leaf: a refusal should say whose it was
        self.claimed = claimed_id(certificate)
        presented, now = [self.chain[at] for at in sorted(self.chain)], self.now()
        presented = _without_anchor(presented)
        claimed = self.verifier.check(presented, now)  # a clearer reason than OpenSSL's, and cheap
        if self.objection:
            raise not_proven(claimed, self.objection)
        self.verifier.prove(claimed, presented, now)
        self.peer = claimed
        return True


def _without_anchor(chain: list[x509.Certificate]) -> list[x509.Certificate]:
    """Drop the anchor that OpenSSL found or the peer sent along; ours comes from the bundle.

    As an intermediate it would be tried as its own issuer, again and again.
    """
    if len(chain) > 1 and chain[-1].subject == chain[-1].issuer:
        return chain[:-1]
    return chain


def _judge(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, _ok: int
) -> bool:
    presented = connection.get_app_data()
    try:
        return bool(presented.judge(certificate.to_cryptography(), error, depth))
    except PeerError as exc:
        presented.refusal, presented.result = exc.message, exc.result
        return False
    except Exception as exc:
        # An exception would be kept in the context, which all connections share, and come out
        # of another one. Whatever the parser says, this peer is refused.
        presented.refusal = f"certificate not accepted: {type(exc).__name__}: {exc}"[:300]
        return False


class HandshakeError(PeerError):
    """A peer that did not get in; `claimed` is the ID it presented, unproven and quoted."""

    def __init__(self, message: str, claimed: str, result: str) -> None:
        super().__init__(message, result=result)
        self.claimed = claimed


class TlsStream:
    """The encrypted side of one connection; reads and writes never block and never wait."""

    def __init__(
        self,
        connection: SSL.Connection,
        sock: socket.socket,
        peer: SpiffeId,
        identity: ServerIdentity,
    ) -> None:
        self._connection = connection
        self.sock = sock
        self.peer = peer
        self.identity = identity  # that the handshake was made with
        leaf = connection.get_peer_certificate(as_cryptography=True)
        assert leaf is not None
        self.serial = serial_text(leaf)
        self.not_before = leaf.not_valid_before_utc
        self.not_after = leaf.not_valid_after_utc
        self.fingerprint = leaf.fingerprint(hashes.SHA256()).hex()

    def prove_again(self, identity: ServerIdentity, now: datetime) -> None:
        """Judge the peer by another identity's bundles, or raise `PeerError`.

        For connections that are older than the bundles of the moment: an authority that has left
        its bundle speaks for nobody any more.
        """
        try:
            leaf = self._connection.get_peer_certificate(as_cryptography=True)
            sent = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        except Exception as exc:
            # What the handshake had no need to look at may be unreadable.
            raise PeerError(f"certificate not accepted: {type(exc).__name__}: {exc}") from exc
        assert leaf is not None
        chain = [leaf, *(one for one in sent if one != leaf)]
        identity.verifier.verify(_without_anchor(chain), now)

    def drain(self, buffer: memoryview) -> tuple[int, bool]:
        """Read what is there, as far as `buffer` has room; give the count and "it has ended".

        The end (close_notify) comes once, possibly with the last bytes. An end of TCP without it
        is `EOFError`, a connection that broke `ConnectionError`; `BlockingIOError` means that
        reading has to write first.
        """
        count = 0
        while count + RECORD_BYTES <= len(buffer):
            try:
                got = self._connection.recv_into(buffer[count:], RECORD_BYTES)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                return count, True
            except SSL.WantWriteError:
                if count:
                    break
                raise BlockingIOError from None
            except SSL.Error as exc:
                kind = EOFError if _is_end_of_tcp(exc) else ConnectionError
                raise kind(_openssl_reason(exc)) from exc
            count += got
            if got < RECORD_BYTES:
                break  # a short record: asking once more would mostly be in vain
        return count, False

    def send(self, data: memoryview | bytes) -> int:
        """Encrypt and send what fits; give the count, 0 when the socket is full."""
        sent = 0
        view = memoryview(data)
        while sent < len(view):
            try:
                sent += self._connection.send(view[sent : sent + RECORD_BYTES])
            except SSL.WantWriteError:
                break
            except SSL.Error as exc:
                raise ConnectionError(_openssl_reason(exc)) from exc
        return sent

    def send_end(self) -> bool:
        """Send close_notify (no more bytes from us); False when the socket is full.

        What the peer still sends can be read afterwards: a half-close, as with TCP.
        """
        try:
            self._connection.shutdown()
        except SSL.WantWriteError:
            return False
        except SSL.Error as exc:
            raise ConnectionError(_openssl_reason(exc)) from exc
        return True


async def handshake(sock: socket.socket, identity: ServerIdentity, seconds: float) -> TlsStream:
    """Take a peer through the handshake, or raise `HandshakeError` with the reason."""
    presented = _Presented(identity.verifier, lambda: datetime.now(UTC))
    connection = SSL.Connection(identity.context, sock)
    connection.set_app_data(presented)
    connection.set_accept_state()
    with trio.move_on_after(seconds) as deadline:
        try:
            await _shake(connection, sock)
        except SSL.Error as exc:
            left = "the peer ended the connection during the handshake"
            reason = presented.refusal or _openssl_reason(exc, ended=left)
            result = presented.result if presented.refusal else openssl_result(_reasons(exc))
            raise HandshakeError(reason, presented.claimed, result) from exc
    if deadline.cancelled_caught:
        text = f"no TLS handshake within {seconds:g} s"
        raise HandshakeError(text, presented.claimed, HandshakeResult.TIMEOUT)
    if presented.peer is None or presented.objection:
        # Cannot happen as long as OpenSSL calls back for the leaf; nobody gets in if it does not.
        result = HandshakeResult.BAD_CERTIFICATE
        raise HandshakeError("certificate not judged", presented.claimed, result)
    # What was gathered is garbage now; an idle connection should not carry it.
    connection.set_app_data(None)
    return TlsStream(connection, sock, presented.peer, identity)


async def _shake(connection: SSL.Connection, sock: socket.socket) -> None:
    while True:
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            await trio.lowlevel.wait_readable(sock)
        except SSL.WantWriteError:
            await trio.lowlevel.wait_writable(sock)
        else:
            return


def _is_end_of_tcp(exc: SSL.Error) -> bool:
    """Tell whether TCP ended where TLS had not."""
    return isinstance(exc, SSL.SysCallError) and exc.args[0] == -1


def _reasons(exc: SSL.Error) -> list[str]:
    """Give OpenSSL's own words; none where the connection broke."""
    if isinstance(exc, SSL.SysCallError):
        return []
    return [entry[-1] for entry in exc.args[0]] if exc.args else []


def _openssl_reason(exc: SSL.Error, ended: str = "ended without close_notify") -> str:
    """Give OpenSSL's reason as a person would say it; `ended` is what an end of TCP means."""
    if isinstance(exc, SSL.SysCallError):
        return ended if _is_end_of_tcp(exc) else str(exc.args[1])
    reasons = _reasons(exc)
    if "peer did not return a certificate" in reasons:
        return "no certificate presented"
    return "; ".join(reasons) or type(exc).__name__
