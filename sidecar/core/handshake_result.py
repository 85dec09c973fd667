"""How a handshake ended, as one of few words: what metrics count.

The log says more in its `reason`; these words never grow with what peers invent. Whoever ends a
handshake knows the word. Only OpenSSL tells its reasons as texts, which are read here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable


class HandshakeResult(enum.StrEnum):
    """All there is; every result but `accepted` and `probe` is a refusal."""

    ACCEPTED = "accepted"
    NO_IDENTITY = "no_identity"  # ours
    TIMEOUT = "timeout"
    DISPLACED = "displaced"  # too many at a time, and this was the oldest
    PROBE = "probe"  # it ended the connection before a byte, as a TCP health check does
    LEFT = "left"  # the peer ended the connection
    PLAIN_HTTP = "plain_http"
    PROTOCOL = "protocol"  # no TLS, or none that we speak
    REFUSED_BY_PEER = "refused_by_peer"  # it does not like our SVID, or ends for reasons of its own
    NO_CERTIFICATE = "no_certificate"
    BAD_CERTIFICATE = "bad_certificate"  # no X.509-SVID by its form
    UNSUPPORTED_CERTIFICATE = "unsupported_certificate"  # a key, or a use, that no SVID has here
    NOT_VALID_NOW = "not_valid_now"  # expired, or not yet valid
    UNKNOWN_TRUST_DOMAIN = "unknown_trust_domain"
    NOT_PROVEN = "not_proven"  # by the bundle of its own trust domain


_HTTP = {"http request", "https proxy request"}
_NO_CERTIFICATE = "peer did not return a certificate"


def openssl_result(reasons: Iterable[str]) -> HandshakeResult:
    """Give the result for the reasons of one error of OpenSSL; none: the connection broke."""
    known = set(reasons)
    if not known:
        return HandshakeResult.LEFT
    if known & _HTTP:
        return HandshakeResult.PLAIN_HTTP
    if _NO_CERTIFICATE in known:
        return HandshakeResult.NO_CERTIFICATE
    if any(" alert " in reason for reason in known):
        return HandshakeResult.REFUSED_BY_PEER
    return HandshakeResult.PROTOCOL
