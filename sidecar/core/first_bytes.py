"""The first bytes of a connection -> what they are in place of TLS, and what to do about it.

Specification: RFC 8446 5.1 (Record Layer); HAProxy's PROXY protocol, versions 1 and 2.
"""

from __future__ import annotations

import re

from sidecar.core.errors import PeerError
from sidecar.core.handshake_result import HandshakeResult

# What tells all of these apart; the longest is the signature of the PROXY protocol's version 2.
LOOKED_AT = 16
_ALERT_RECORD, _HANDSHAKE_RECORD = 0x15, 0x16
_PROXY_2 = b"\r\n\r\n\0\r\nQUIT\n"
_HTTP = re.compile(rb"[A-Z][A-Z-]{2,} ?")
_MTLS = "this port speaks TLS with client certificates only: use https:// and an X.509-SVID"
_NO_PROXY_HEADER = (
    "the sidecar does not read it: switch it off for this port in the balancer (Traefik: "
    "proxyProtocol, HAProxy: send-proxy)"
)
_VERSIONS = {b"\3\0": "SSL 3", b"\3\1": "TLS 1.0", b"\3\2": "TLS 1.1", b"\3\3": "TLS 1.2"}


def may_be_tls(first: int) -> bool:
    """Tell whether a TLS record may begin with this byte, or a hello of SSL 2."""
    return first in (_ALERT_RECORD, _HANDSHAKE_RECORD) or first >= 0x80


def other_protocol(data: bytes) -> PeerError:
    """Return the refusal of what began with `data`, which is no TLS."""
    if data.startswith(b"PROXY"):
        return _refusal("a PROXY protocol header (version 1)", _NO_PROXY_HEADER)
    if data.startswith(_PROXY_2):
        return _refusal("a PROXY protocol header (version 2)", _NO_PROXY_HEADER)
    if data.startswith(b"PRI * HTTP/2"):
        return _refusal("plain HTTP/2 (h2c)", _MTLS, HandshakeResult.PLAIN_HTTP)
    if data.startswith(b"SSH-"):
        return _refusal("SSH", "is this the right port?")
    if _HTTP.match(data):
        return _refusal("plain HTTP", _MTLS, HandshakeResult.PLAIN_HTTP)
    return _refusal(f"no TLS (first bytes {data[:4].hex(' ')})", "is this the right port?")


def too_old(hello: bytes) -> PeerError:
    """Return the refusal of a ClientHello, as far as it was seen, of too old a version."""
    # RFC 8446 4.1.2: who does not speak 1.3 writes the newest that it does into legacy_version.
    version = _VERSIONS.get(hello[9:11]) if hello[5:6] == b"\1" else None
    if version == "TLS 1.2":
        hint = 'update the peer, or set [listener] tls_minimum_version = "1.2"'
        return PeerError(
            "the peer offers TLS 1.2 at most, expected TLS 1.3",
            hint,
            result=HandshakeResult.PROTOCOL,
        )
    text = f"the peer offers {version or 'an old version of TLS'} at most, expected TLS 1.3"
    return PeerError(text, "update the peer's TLS", result=HandshakeResult.PROTOCOL)


def _refusal(
    found: str, hint: str, result: HandshakeResult = HandshakeResult.PROTOCOL
) -> PeerError:
    return PeerError(f"the peer sent {found}, expected TLS", hint, result=result)
