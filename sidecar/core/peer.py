"""Presented chain + bundles -> SPIFFE ID, or `PeerError` with the rule that was broken.

The one place where a certificate is believed. Each chain is verified against the bundle of its
own trust domain and no other, so a federated authority can never speak for our trust domain.
Our own SVID has to pass the same rules before it is used.
Specification: X509-SVID 5 (Validation), Workload API 4.6 (Federated Bundles).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509 import ExtendedKeyUsage, KeyUsage, SubjectAlternativeName
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from sidecar.core.errors import InvalidSpiffeIdError, PeerError
from sidecar.core.spiffe_id import SCHEME, SpiffeId, TrustDomain
from sidecar.core.svid import Bundles, uri_sans

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
MAX_RSA_EXPONENT_BITS = 32
MAX_INTERMEDIATES = 8


class SvidVerifier:
    """The rules and authorities of one identity update, built once and never changed."""

    def __init__(self, bundles: Bundles) -> None:
        # A bundle without authorities trusts nothing ("Trust Domain and Bundle" 4.1.3, Keys).
        self._builders: dict[TrustDomain, PolicyBuilder] = {
            trust_domain: PolicyBuilder()
            .store(Store(list(bundle.authorities)))
            .extension_policies(ca_policy=_SIGNING_POLICY, ee_policy=_LEAF_POLICY)
            .max_chain_depth(MAX_INTERMEDIATES)
            for trust_domain, bundle in bundles.items()
            if bundle.authorities
        }

    def verify(self, chain: Sequence[x509.Certificate], now: datetime) -> SpiffeId:
        """Give the SPIFFE ID that `chain` (leaf first) proves at `now`, or raise `PeerError`."""
        claimed = self.check(chain, now)
        self.prove(claimed, chain, now)
        return claimed

    def prove(self, claimed: SpiffeId, chain: Sequence[x509.Certificate], now: datetime) -> None:
        """Prove by signatures what `check` of the same chain gave, or raise `PeerError`."""
        builder = self._builders[claimed.trust_domain]
        try:
            # Without a DNS name to compare, the client verifier serves both directions.
            verified = builder.time(now).build_client_verifier().verify(chain[0], list(chain[1:]))
        except VerificationError as exc:
            raise not_proven(claimed, _reason(exc)) from exc
        except Exception as exc:
            raise _not_accepted(exc) from exc
        if len(verified.chain) < 2:
            raise PeerError("the certificate is itself an authority of its trust bundle")

    def check(self, chain: Sequence[x509.Certificate], now: datetime) -> SpiffeId:
        """Give the SPIFFE ID that `chain` claims, after all that costs no signature; or raise.

        Proves nothing by itself: it finds the clear reason for most refusals, and keeps what is
        made to be expensive away from the search for a path.
        """
        if not chain:
            raise PeerError("no certificate presented", result="no_certificate")
        try:
            spiffe_id = leaf_spiffe_id(chain[0])
            for presented in chain:
                check_key(presented)
            if spiffe_id.trust_domain not in self._builders:
                text = f"no trust bundle for trust domain {spiffe_id.trust_domain}"
                raise PeerError(text, result="unknown_trust_domain")
            _check_validity(chain[0], now)
        except PeerError:
            raise
        except Exception as exc:
            raise _not_accepted(exc) from exc
        return spiffe_id


def not_proven(claimed: SpiffeId, reason: str) -> PeerError:
    """Give the refusal of a chain that does not lead to the authorities it would have to."""
    text = f"not proven by the trust bundle of {claimed.trust_domain}: {reason}"
    return PeerError(text, result="not_proven")


def _not_accepted(exc: Exception) -> PeerError:
    """Give the refusal for whatever a parser raised.

    Trust boundary: they know ValueError, UnsupportedAlgorithm, InvalidVersion and more. Whatever
    it is, nobody gets in.
    """
    return PeerError(f"certificate not accepted: {_reason(exc)}")


def leaf_spiffe_id(leaf: x509.Certificate) -> SpiffeId:
    """Give the ID a leaf claims, nothing proven (X509-SVID 2, SPIFFE ID; 5.2, Leaf Validation)."""
    try:
        uris = uri_sans(leaf)
    except ValueError as exc:
        raise PeerError(str(exc)[:300]) from exc
    if len(uris) != 1:
        raise PeerError(f"{len(uris)} URI names in the certificate, exactly one is allowed")
    try:
        spiffe_id = SpiffeId.parse(uris[0])
    except InvalidSpiffeIdError as exc:
        raise PeerError(exc.message) from exc
    if not spiffe_id.path:
        raise PeerError(f"{spiffe_id} names a trust domain, not a workload")
    return spiffe_id


def claimed_id(leaf: x509.Certificate) -> str:
    """Give what a log line may show of an unverified leaf: its URI names, quoted and cut."""
    try:
        return ",".join(repr(uri[:256]) for uri in uri_sans(leaf)[:4]) or "none"
    except ValueError:
        return "unreadable"


def check_key(certificate: x509.Certificate) -> None:
    """Refuse weak keys, kinds that TLS does not sign with, and such that only cost us time."""
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            expected = f"{MIN_RSA_BITS} to {MAX_RSA_BITS}"
            raise PeerError(f"RSA key of {key.key_size} bits, expected {expected}")
        # A long exponent makes each verification a hundred times as expensive, for us.
        if key.public_numbers().e.bit_length() > MAX_RSA_EXPONENT_BITS:
            raise PeerError(f"RSA key with an exponent of over {MAX_RSA_EXPONENT_BITS} bits")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
            raise PeerError(f"key on curve {key.curve.name}, expected P-256, P-384 or P-521")
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise PeerError(f"key of type {type(key).__name__}, expected ECDSA, RSA or Ed25519")


def _check_validity(leaf: x509.Certificate, now: datetime) -> None:
    """Say which end of the validity was missed; the verifier below would only say that one was."""
    if now < leaf.not_valid_before_utc:
        text = f"not valid before {leaf.not_valid_before_utc:%FT%TZ}, it is {now:%FT%TZ}"
        raise PeerError(text, result="not_valid_now")
    if now > leaf.not_valid_after_utc:
        text = f"expired at {leaf.not_valid_after_utc:%FT%TZ}, it is {now:%FT%TZ}"
        raise PeerError(text, result="not_valid_now")


def _reason(exc: Exception) -> str:
    """Give the verifier's reason without its search log ("candidates exhausted: ...")."""
    text = str(exc).removeprefix("validation failed: ").partition(" (encountered processing")[0]
    text = text.removeprefix("Python extension validator failed: ValueError: ")
    if text.endswith("no interior errors"):
        return "none of its authorities signed it"
    return text.removeprefix("candidates exhausted: ")[:300] or type(exc).__name__


# The callbacks below raise ValueError, which the verifier turns into a VerificationError.


def _leaf_basic_constraints(
    _policy: Policy, _leaf: x509.Certificate, extension: x509.BasicConstraints | None
) -> None:
    if extension is not None and extension.ca:  # X509-SVID 4.1 (Basic Constraints)
        raise ValueError("cA is true on a leaf")


def _leaf_key_usage(_policy: Policy, _leaf: x509.Certificate, extension: KeyUsage) -> None:
    if not extension.digital_signature:  # X509-SVID 4.3 (Key Usage)
        raise ValueError("keyUsage lacks digitalSignature")
    if extension.key_cert_sign or extension.crl_sign:
        raise ValueError("keyUsage of a leaf has keyCertSign or cRLSign")


def _leaf_extended_key_usage(
    _policy: Policy, _leaf: x509.Certificate, extension: ExtendedKeyUsage | None
) -> None:
    needed = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    if extension is not None and not needed <= set(extension):  # X509-SVID 4.4 (EKU)
        raise ValueError("extendedKeyUsage lacks clientAuth or serverAuth")


def _signing_basic_constraints(
    _policy: Policy, _certificate: x509.Certificate, extension: x509.BasicConstraints
) -> None:
    if not extension.ca:
        raise ValueError("signing certificate without cA")


def _signing_key_usage(
    _policy: Policy, _certificate: x509.Certificate, extension: KeyUsage
) -> None:
    if not extension.key_cert_sign:
        raise ValueError("signing certificate without keyCertSign")


def _signing_name(
    _policy: Policy, _certificate: x509.Certificate, extension: SubjectAlternativeName | None
) -> None:
    """A signing certificate need not have an ID, but if so one without a path (X509-SVID 3.2)."""
    if extension is None:
        return
    for uri in extension.get_values_for_type(x509.UniformResourceIdentifier):
        # Whatever the case of the scheme: what is not spelled as we spell it must not pass unseen.
        scheme, rest = uri[: len(SCHEME)], uri[len(SCHEME) :]
        if scheme.lower() == SCHEME and SpiffeId.parse(SCHEME + rest.removesuffix("/")).path:
            raise ValueError("the SPIFFE ID of a signing certificate has a path")


_LEAF_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(SubjectAlternativeName, Criticality.AGNOSTIC, None)
    .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _leaf_basic_constraints)
    .require_present(KeyUsage, Criticality.CRITICAL, _leaf_key_usage)
    .may_be_present(ExtendedKeyUsage, Criticality.AGNOSTIC, _leaf_extended_key_usage)
)
_SIGNING_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _signing_basic_constraints)
    .require_present(KeyUsage, Criticality.AGNOSTIC, _signing_key_usage)
    .may_be_present(SubjectAlternativeName, Criticality.AGNOSTIC, _signing_name)
)
