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
from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import (
    MOST_TOLD,
    Bundles,
    certificate_text,
    first_of,
    is_over,
    uri_sans,
)
from sidecar.core.trust_anchor import (
    UnsupportedKeyError,
    check_directory_names,
    check_public_key,
    check_signer,
    extension_of,
    trust_anchor,
)

MAX_INTERMEDIATES = 8
_UNSUPPORTED = "unsupported_certificate"
_NOT_SUPPORTED = "which are not supported"


class SvidVerifier:
    """The rules and authorities of one identity update, built once and never changed."""

    def __init__(self, bundles: Bundles) -> None:
        self._authorities = {one: set(bundle.authorities) for one, bundle in bundles.items()}
        self._builders: dict[TrustDomain, PolicyBuilder] = {}
        self._useless: dict[TrustDomain, list[str]] = {}
        for trust_domain, bundle in bundles.items():
            anchors, useless = _anchors(bundle.authorities)
            self._useless[trust_domain] = useless
            if anchors:
                # A bundle without any trusts nothing ("Trust Domain and Bundle" 4.1.3, Keys).
                self._builders[trust_domain] = (
                    PolicyBuilder()
                    .store(Store(anchors))
                    .extension_policies(ca_policy=_SIGNING_POLICY, ee_policy=_LEAF_POLICY)
                    .max_chain_depth(MAX_INTERMEDIATES)
                )

    @property
    def notes(self) -> list[str]:
        """Return which authorities can prove no peer, and why: lines for the first of a bundle."""
        return [
            f"bundle of {trust_domain}: {text}"
            for trust_domain, useless in self._useless.items()
            for text in first_of(useless)
        ]

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
            check_directory_names(verified.chain)
        except (VerificationError, ValueError) as exc:
            raise not_proven(claimed, self._told(claimed.trust_domain, _reason(exc))) from exc
        except Exception as exc:
            raise _not_accepted(exc) from exc
        if len(verified.chain) < 2:
            raise PeerError("the certificate is itself an authority of its trust bundle")

    def _told(self, trust_domain: TrustDomain, reason: str) -> str:
        """Return the reason, and which authorities were of no use in finding a path."""
        return "; ".join([reason, *self._useless[trust_domain][:MOST_TOLD]])

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
            if chain[0] in self._authorities.get(spiffe_id.trust_domain, ()):
                raise PeerError("the certificate is itself an authority of its trust bundle")
            self._check_trust_domain(spiffe_id.trust_domain)
            _check_validity(chain[0], now)
            _check_usage(chain[0])
        except PeerError:
            raise
        except Exception as exc:
            raise _not_accepted(exc) from exc
        return spiffe_id

    def _check_trust_domain(self, trust_domain: TrustDomain) -> None:
        if trust_domain in self._builders:
            return
        text = f"no trust bundle for trust domain {trust_domain}"
        if useless := self._useless.get(trust_domain):
            told = "; ".join(useless[:MOST_TOLD])
            text = f"no authority that can be used for trust domain {trust_domain}: {told}"
        raise PeerError(text, result="unknown_trust_domain")


def _anchors(authorities: Sequence[x509.Certificate]) -> tuple[list[x509.Certificate], list[str]]:
    """Return the anchors, and a line for each authority that cannot be one."""
    anchors, useless = [], []
    for number, authority in enumerate(authorities, 1):
        try:
            anchors.append(trust_anchor(authority))
        except Exception as exc:  # the parsers raise more than ValueError
            text = str(exc)[:200] or type(exc).__name__
            useless.append(f"authority {number} ({certificate_text(authority)}): {text}")
    return anchors, useless


def not_proven(claimed: SpiffeId, reason: str) -> PeerError:
    """Give the refusal of a chain that does not lead to the authorities it would have to."""
    text = f"not proven by the trust bundle of {claimed.trust_domain}: {reason}"
    return PeerError(text, result=_UNSUPPORTED if _NOT_SUPPORTED in reason else "not_proven")


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
    try:
        check_public_key(certificate.public_key())
    except UnsupportedKeyError as exc:
        raise PeerError(str(exc), result=_UNSUPPORTED) from exc
    except ValueError as exc:
        raise PeerError(str(exc)[:300]) from exc


def _check_validity(leaf: x509.Certificate, now: datetime) -> None:
    """Say which end of the validity was missed; the verifier below would only say that one was."""
    if now < leaf.not_valid_before_utc:
        text = f"not valid before {leaf.not_valid_before_utc:%FT%TZ}, it is {now:%FT%TZ}"
        raise PeerError(text, result="not_valid_now")
    if is_over(leaf.not_valid_after_utc, now):
        text = f"expired at {leaf.not_valid_after_utc:%FT%TZ}, it is {now:%FT%TZ}"
        raise PeerError(text, result="not_valid_now")


def _check_usage(leaf: x509.Certificate) -> None:
    """Refuse what is not made for both ends of TLS, or not for a leaf (X509-SVID 4)."""
    constraints = extension_of(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:  # X509-SVID 4.1 (Basic Constraints)
        raise PeerError("cA is true on a leaf")
    try:
        usage = leaf.extensions.get_extension_for_class(KeyUsage)
    except x509.ExtensionNotFound:
        raise PeerError("no keyUsage, expected digitalSignature", result=_UNSUPPORTED) from None
    if not usage.value.digital_signature:  # X509-SVID 4.3 (Key Usage)
        raise PeerError("keyUsage lacks digitalSignature", result=_UNSUPPORTED)
    if usage.value.key_cert_sign or usage.value.crl_sign:
        text = "keyUsage of a leaf has keyCertSign or cRLSign"
        raise PeerError(text, result=_UNSUPPORTED)
    if not usage.critical:
        raise PeerError("keyUsage is not critical", result=_UNSUPPORTED)
    extended = extension_of(leaf, ExtendedKeyUsage)
    needed = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    if extended is not None and not needed <= set(extended):  # X509-SVID 4.4 (EKU)
        text = "extendedKeyUsage lacks clientAuth or serverAuth"
        raise PeerError(text, result=_UNSUPPORTED)


_OWN_WORDS = {
    "signature does not match": "none of its authorities signed it",
    "unsupported name constraint": f"URI name constraints in its chain, {_NOT_SUPPORTED}",
    "fatal error: critical nameConstraints extension contains an unsupported directoryName "
    "constraint": f"critical directoryName constraints in its chain, {_NOT_SUPPORTED}",
    "fatal error: Exceeded maximum signature check limit": (
        "too many certificates of one name in its chain or its trust bundle"
    ),
    "invalid extension: 2.5.29.15: Certificate is missing required extension": (
        "signing certificate without keyUsage"
    ),
}


def _reason(exc: Exception) -> str:
    """Give the verifier's reason without its search log ("candidates exhausted: ...")."""
    text = str(exc).removeprefix("validation failed: ").partition(" (encountered processing")[0]
    if text.endswith("no interior errors"):
        return "none of its authorities signed it"
    text = text.removeprefix("candidates exhausted: ")
    text = text.removeprefix("Python extension validator failed: ValueError: ")
    if text.startswith("Forbidden public key algorithm") and "Ed25519" in text:
        return f"Ed25519 keys in signing certificates, {_NOT_SUPPORTED}: expected ECDSA or RSA"
    if text.endswith("unaccounted-for critical extensions"):
        return f"critical extensions {_NOT_SUPPORTED}: {text.split(': ')[1]}"
    return _OWN_WORDS.get(text, text[:300]) or type(exc).__name__


def _signing_key_usage(_policy: Policy, certificate: x509.Certificate, _usage: KeyUsage) -> None:
    """Look at all of a signing certificate; ValueError becomes a VerificationError."""
    check_signer(certificate)


# What a leaf must be was looked at by `check`; here nothing critical may be left that it was not.
_LEAF_POLICY = ExtensionPolicy.permit_all().require_present(
    SubjectAlternativeName, Criticality.AGNOSTIC, None
)
_SIGNING_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .require_present(KeyUsage, Criticality.AGNOSTIC, _signing_key_usage)
)
