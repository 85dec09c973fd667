"""What OpenSSL calls back with, certificate by certificate, and the verdict at the leaf.

OpenSSL finds the order of the chain and checks that the peer has the leaf's key. Whom to believe is
for `core.peer` alone: OpenSSL has no trust store here, so its objections say nothing, and a second
verifier would refuse what ours accepts. A refusal is answered with the alert that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL, crypto

from sidecar.core.errors import HostError, PeerError
from sidecar.core.handshake_result import HandshakeResult
from sidecar.core.peer import MAX_INTERMEDIATES, SvidVerifier, check_key, claimed_id
from sidecar.core.spiffe_id import SpiffeId

# OpenSSL makes the alert (RFC 8446 6.2, Error Alerts) of its own verification error (x509_vfy.h).
_OPENSSL_ERRORS = {
    HandshakeResult.BAD_CERTIFICATE: 28,  # rejected: bad_certificate
    HandshakeResult.UNSUPPORTED_CERTIFICATE: 26,  # purpose: unsupported_certificate
    HandshakeResult.NOT_VALID_NOW: 10,  # expired: certificate_expired
    HandshakeResult.UNKNOWN_TRUST_DOMAIN: 20,  # no issuer: unknown_ca
    HandshakeResult.NOT_PROVEN: 20,
}


@dataclass(slots=True)
class Presented:
    """What one peer presented, gathered by OpenSSL's callbacks from the root to the leaf."""

    verifier: SvidVerifier
    now: Callable[[], datetime]
    chain: dict[int, x509.Certificate] = field(default_factory=dict)
    refusal: str = ""
    result: str = HandshakeResult.BAD_CERTIFICATE
    claimed: str = "none"
    peer: SpiffeId | None = None

    def judge(self, certificate: x509.Certificate, depth: int, *, checked: bool) -> None:
        """Take one certificate; at the leaf, when OpenSSL has `checked` it, decide.

        Raises `PeerError`. A callback that is an objection of OpenSSL's may come before the
        certificates above are known, and says nothing here.
        """
        self.chain[depth] = certificate
        if depth > 0:
            check_key(certificate)  # before OpenSSL verifies a signature with it
            return
        self.claimed = claimed_id(certificate)
        if checked and self.peer is None:
            presented = without_anchor([self.chain[at] for at in sorted(self.chain)])
            self.peer = self.verifier.verify(presented, self.now())

    def hear(self, certificate: crypto.X509, depth: int, *, checked: bool) -> bool:
        """Hear OpenSSL's callback; False ends the handshake with an alert."""
        try:
            self.judge(certificate.to_cryptography(), depth, checked=checked)
        except PeerError as exc:
            self.refusal, self.result = exc.message, exc.result
        except Exception as exc:
            # An exception would be kept in the context, which all connections share, and come out
            # of another one. Whatever the parser says, this peer is refused.
            self.refusal = f"certificate not accepted: {type(exc).__name__}: {exc}"[:300]
        if self.refusal:
            self.peer = None
        return not self.refusal


def without_anchor(chain: list[x509.Certificate]) -> list[x509.Certificate]:
    """Drop the anchor that the peer sent along; ours comes from the bundle.

    As an intermediate it would be tried as its own issuer, again and again.
    """
    if len(chain) > 1 and chain[-1].subject == chain[-1].issuer:
        return chain[:-1]
    return chain


def above(leaf: x509.Certificate, sent: Sequence[crypto.X509]) -> list[x509.Certificate]:
    """Return `leaf` and what was sent of the chain above it.

    What has nothing to do with it was not looked at in the handshake, and may be odd or unreadable.
    """
    readable = []
    for one in sent:
        with suppress(Exception):  # the parsers raise more than ValueError
            certificate = one.to_cryptography()
            readable.append((certificate.subject, certificate.issuer, certificate))
    chain, wanted = [leaf], {leaf.issuer}
    while found := [one for one in readable if one[0] in wanted and one[2] not in chain]:
        chain += [certificate for _, _, certificate in found]
        wanted = {issuer for _, issuer, _ in found}
    return chain


def judge_peers(context: SSL.Context, mode: int) -> None:
    """Let the `Presented` that is a connection's app data judge who is at its other end.

    pyOpenSSL tells a callback all of OpenSSL's verification and lets it say yes or no. With which
    error a no ends, and so with which alert, is set around it; what that takes of pyOpenSSL is
    private, and pyproject.toml bounds its version.
    """
    refusals: list[str] = []

    def hear(
        connection: SSL.Connection, certificate: crypto.X509, _error: int, depth: int, ok: int
    ) -> bool:
        presented: Presented = connection.get_app_data()
        accepted = presented.hear(certificate, depth, checked=ok == 1)
        if not accepted:
            refusals[:] = [presented.result]
        return accepted

    try:
        context.set_verify(mode, hear)
        _choose_alerts(context, mode, refusals)
    except MemoryError as exc:  # cffi makes the callback's entry at run time
        raise HostError(
            "no memory that is writable and executable, which OpenSSL's way into Python needs",
            "systemd: MemoryDenyWriteExecute=no for this unit; SELinux: allow execmem",
        ) from exc
    context.set_verify_depth(MAX_INTERMEDIATES + 1)
    store = context.get_cert_store()
    assert store is not None
    # Else OpenSSL would pass over the topmost certificate of a chain whose root it does not have.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)


def _choose_alerts(context: Any, mode: int, refusals: list[str]) -> None:
    binding = Binding()
    pyopenssl = context._verify_callback

    def call(ok: int, verification: object) -> int:
        accepted: int = pyopenssl(ok, verification)
        if not accepted:
            error = _OPENSSL_ERRORS[HandshakeResult(refusals[-1])]
            binding.lib.X509_STORE_CTX_set_error(verification, error)
        return accepted

    callback = binding.ffi.callback("int (*)(int, X509_STORE_CTX *)", call)
    context._verify_callback = callback  # lives as long as the context
    binding.lib.SSL_CTX_set_verify(context._context, mode, callback)
