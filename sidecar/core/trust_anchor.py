"""An authority of a trust bundle -> the trust anchor that chains are verified to.

RFC 5280 6.1.1 (d): a trust anchor is a name and a key. So a stock root without keyUsage, or with
an extension that we do not know, is one: the verifier gets a certificate in its place that holds
no more than the name, the key, the validity and what the authority says against itself (path
length, name constraints). Intermediates are verified as they are.
Specification: X509-SVID 3.2 and 4 (of signing certificates), RFC 5280 6.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from sidecar.core.errors import InvalidSpiffeIdError
from sidecar.core.spiffe_id import SCHEME, SpiffeId
from sidecar.core.svid import uri_sans

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
MAX_RSA_EXPONENT_BITS = 32
_USAGES = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


T = TypeVar("T", bound=x509.ExtensionType)


class UnsupportedKeyError(ValueError):
    """A key of a kind that nothing here verifies with."""


def trust_anchor(authority: x509.Certificate) -> x509.Certificate:
    """Return the anchor for `authority`, or raise `ValueError`: nothing it signs can be proven."""
    key = authority.public_key()
    if isinstance(key, ed25519.Ed25519PublicKey):
        raise UnsupportedKeyError(
            "an Ed25519 key is not supported in an authority, expected ECDSA or RSA"
        )
    check_public_key(key)
    constraints = check_signer(authority)
    builder = (
        x509.CertificateBuilder()
        .subject_name(authority.subject)
        .issuer_name(authority.subject)
        .public_key(key)
        .serial_number(1)
        .not_valid_before(authority.not_valid_before_utc)
        .not_valid_after(authority.not_valid_after_utc)
        .add_extension(constraints, critical=True)
        .add_extension(_SIGNS, critical=True)
    )
    names = extension_of(authority, x509.NameConstraints)
    if names is not None:
        check_supported(names)
        # The verifier refuses critical ones on directory names, which are checked by us.
        builder = builder.add_extension(names, critical=False)
    anchor = builder.sign(_any_key(), SHA256())
    # Names are compared byte by byte, and a builder writes them in its own way.
    if authority.subject.public_bytes() not in authority.tbs_certificate_bytes:
        raise ValueError("a name whose encoding is not supported")
    return anchor


def check_signer(certificate: x509.Certificate) -> x509.BasicConstraints:
    """Refuse by `ValueError` what may not sign; a usage that is absent restricts nothing."""
    constraints = extension_of(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:  # X509-SVID 4.1 (Basic Constraints)
        raise ValueError("signing certificate without cA")
    usage = extension_of(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:  # X509-SVID 4.3 (Key Usage)
        raise ValueError("signing certificate without keyCertSign")
    extended = extension_of(certificate, x509.ExtendedKeyUsage)
    if extended is not None and not _allows_both(extended):
        raise ValueError("extendedKeyUsage of a signing certificate lacks clientAuth or serverAuth")
    # A signing certificate need not have an ID, but if so one without a path (X509-SVID 3.2).
    for uri in uri_sans(certificate):
        # Whatever the case of the scheme: what is not spelled as we spell it must not pass unseen.
        scheme, rest = uri[: len(SCHEME)], uri[len(SCHEME) :]
        if scheme.lower() == SCHEME and _id(SCHEME + rest.removesuffix("/")).path:
            raise ValueError("the SPIFFE ID of a signing certificate has a path")
    return constraints


def check_public_key(key: object) -> None:
    """Refuse by `ValueError` weak keys, unknown kinds, and such that only cost us time."""
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            expected = f"{MIN_RSA_BITS} to {MAX_RSA_BITS}"
            raise ValueError(f"RSA key of {key.key_size} bits, expected {expected}")
        # A long exponent makes each verification a hundred times as expensive, for us.
        if key.public_numbers().e.bit_length() > MAX_RSA_EXPONENT_BITS:
            raise ValueError(f"RSA key with an exponent of over {MAX_RSA_EXPONENT_BITS} bits")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
            text = f"key on curve {key.curve.name}, expected P-256, P-384 or P-521"
            raise UnsupportedKeyError(text)
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        text = f"key of type {type(key).__name__}, expected ECDSA, RSA or Ed25519"
        raise UnsupportedKeyError(text)


def check_supported(names: x509.NameConstraints) -> None:
    """Refuse by `ValueError` constraints on URIs: the verifier cannot apply them to an ID."""
    if any(isinstance(one, x509.UniformResourceIdentifier) for one in _all_of(names)):
        raise ValueError("URI name constraints are not supported")


def check_directory_names(chain: list[x509.Certificate]) -> None:
    """Hold the names of `chain`, leaf first, against its directoryName constraints.

    The verifier applies those on DNS names, addresses and mail; a violation is `ValueError`
    (RFC 5280 4.2.1.10 and 7.1: compared without regard to case and repeated blanks).
    """
    for place, authority in enumerate(chain):
        constraints = extension_of(authority, x509.NameConstraints)
        if constraints is None:
            continue
        permitted = _directories(constraints.permitted_subtrees)
        excluded = _directories(constraints.excluded_subtrees)
        for depth, below in enumerate(chain[:place]):
            if depth and below.subject == below.issuer:
                continue  # RFC 5280 6.1.3 (b): self-issued, and not the last
            for name in _directory_names(below):
                if any(_is_within(name, one) for one in excluded):
                    raise ValueError("a name that an authority above it excludes")
                if permitted and not any(_is_within(name, one) for one in permitted):
                    raise ValueError("a name that an authority above it does not permit")


def extension_of(certificate: x509.Certificate, kind: type[T]) -> T | None:
    """Return the extension of this kind, or None."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


@cache
def _any_key() -> ec.EllipticCurvePrivateKey:
    """Return the key that signs anchors; the signature of an anchor is not verified."""
    return ec.generate_private_key(ec.SECP256R1())


def _allows_both(usage: x509.ExtendedKeyUsage) -> bool:
    return set(usage) >= _USAGES or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def _id(text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except InvalidSpiffeIdError as exc:
        raise ValueError(exc.message) from exc


def _all_of(names: x509.NameConstraints) -> list[x509.GeneralName]:
    return [*(names.permitted_subtrees or ()), *(names.excluded_subtrees or ())]


def _directories(subtrees: Iterable[x509.GeneralName] | None) -> list[x509.Name]:
    return [one.value for one in subtrees or () if isinstance(one, x509.DirectoryName)]


def _directory_names(certificate: x509.Certificate) -> list[x509.Name]:
    names = extension_of(certificate, x509.SubjectAlternativeName)
    others = names.get_values_for_type(x509.DirectoryName) if names is not None else []
    return [*([certificate.subject] if list(certificate.subject) else []), *others]


def _is_within(name: x509.Name, base: x509.Name) -> bool:
    return _compared(name)[: len(base.rdns)] == _compared(base)


def _compared(name: x509.Name) -> list[frozenset[tuple[str, str]]]:
    """Return a name as it is compared."""
    return [
        frozenset(
            (one.oid.dotted_string, " ".join(str(one.value).casefold().split())) for one in rdn
        )
        for rdn in name.rdns
    ]
