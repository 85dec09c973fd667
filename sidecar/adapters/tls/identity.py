"""The identity that is served with, the context made of it, and the one of the moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import trio
from OpenSSL import SSL, crypto

from sidecar.adapters.tls.judgement import judge_peers
from sidecar.core.errors import AgentProtocolError, PeerError
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.identity_state import Clocks, Standing
from sidecar.core.ledger import Ledger
from sidecar.core.peer import SvidVerifier
from sidecar.core.svid import Bundles, X509Svid

# TLS 1.2 has no other AEAD suites with forward secrecy; TLS 1.3 brings its own.
_TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
HTTP = b"http/1.1"  # in ALPN
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


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
    ledger: Ledger
    identity: ServerIdentity | None = None
    standing: Standing = field(default_factory=Standing)
    changed: trio.Event = field(default_factory=trio.Event)
    retry_at: datetime | None = None  # when an update that was discarded may be good
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


def server_identity(
    svid: X509Svid, bundles: Bundles, minimum_version: str, *, speaks_http: bool = False
) -> ServerIdentity:
    """Build what one update is served with; a new context each time, never a changed one.

    What OpenSSL cannot read is `AgentProtocolError`.
    """
    try:
        context = _server_context(svid, minimum_version)
        if speaks_http:
            context.set_alpn_select_callback(_choose_protocol)
    except (SSL.Error, crypto.Error, ValueError) as exc:
        raise AgentProtocolError(f"SVID {svid.spiffe_id}: OpenSSL cannot use it: {exc}") from exc
    return ServerIdentity(svid, bundles, SvidVerifier(bundles), context)


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
    judge_peers(context, SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return context


def _choose_protocol(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """Give the one protocol of mode http; what is raised becomes `no_application_protocol`.

    pyOpenSSL raises it again from the call that the handshake is made with. Not called for a peer
    that offers nothing (RFC 7301 3.2).
    """
    if HTTP in offered:
        return HTTP
    names = ", ".join(repr(one[:32].decode("ascii", "replace")) for one in offered[:4])
    raise PeerError(
        f"the peer offers {names} by ALPN, expected 'http/1.1'",
        "switch HTTP/2 off in the client for this server (Traefik: disableHTTP2)",
        result=HandshakeResult.PROTOCOL,
    )
