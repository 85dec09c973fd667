"""OpenSSL: the server context of one identity, the handshake that judges the peer, the stream.

Gets a `ServerIdentity` and a connected socket, gives a `TlsStream` of a verified peer or raises
`PeerError`. A peer is refused inside the handshake, so that it gets a TLS alert. OpenSSL's trust
store is only a filter here: it holds the union of all bundles, with which any federated
authority could sign for our trust domain; `core.peer` makes the decision.
Never resumes a session: a resumed one would skip that decision.
"""

from sidecar.adapters.tls.handshaking import HandshakeError, handshake
from sidecar.adapters.tls.identity import CurrentIdentity, ServerIdentity, server_identity
from sidecar.adapters.tls.stream import RECORD_BYTES, TlsStream

__all__ = [
    "RECORD_BYTES",
    "CurrentIdentity",
    "HandshakeError",
    "ServerIdentity",
    "TlsStream",
    "handshake",
    "server_identity",
]
