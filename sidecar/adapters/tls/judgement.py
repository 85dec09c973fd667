"""What OpenSSL calls back with, certificate by certificate, and the verdict at the leaf."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from OpenSSL import SSL, crypto

from sidecar.core.errors import PeerError
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.peer import (
    SvidVerifier,
    check_key,
    claimed_id,
    not_proven,
)
from sidecar.core.spiffe_id import SpiffeId

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


@dataclass(slots=True)
class Presented:
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
        presented = without_anchor(presented)
        claimed = self.verifier.check(presented, now)  # a clearer reason than OpenSSL's, and cheap
        if self.objection:
            raise not_proven(claimed, self.objection)
        self.verifier.prove(claimed, presented, now)
        self.peer = claimed
        return True


def without_anchor(chain: list[x509.Certificate]) -> list[x509.Certificate]:
    """Drop the anchor that OpenSSL found or the peer sent along; ours comes from the bundle.

    As an intermediate it would be tried as its own issuer, again and again.
    """
    if len(chain) > 1 and chain[-1].subject == chain[-1].issuer:
        return chain[:-1]
    return chain


def judge_certificate(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, _ok: int
) -> bool:
    """Hear OpenSSL's callback; False ends the handshake with an alert."""
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
