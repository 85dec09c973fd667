"""Certificates that `tests.ca` does not make: odd authorities, odd names, bytes that are no DER."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.core.spiffe_id import TrustDomain
from sidecar.core.svid import TrustBundle
from tests.ca import BOTH_USAGES, Authority, Issued, Key, hash_for, key_usage

SIGNS = key_usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
SAN = x509.SubjectAlternativeName.oid


class OddAuthority(Authority):
    """An authority (below `parent`, if there is one) whose own certificate is told what to be."""

    def __init__(
        self,
        trust_domain: str = "example.org",
        name: str = "SPIFFE",
        *,
        parent: Authority | None = None,
        ca: bool | None = True,
        path_length: int | None = None,
        basic_constraints_critical: bool = True,
        usage: x509.KeyUsage | None = SIGNS,
        key_id: bool = True,
        not_before: timedelta = timedelta(days=-2),
        not_after: timedelta = timedelta(days=1),
        key: Key | None = None,
        uris: Sequence[str] = (),
        extended_key_usage: Sequence[x509.ObjectIdentifier] = (),
        name_constraints: x509.NameConstraints | None = None,
        name_constraints_critical: bool = True,
        more: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> None:
        self.trust_domain = TrustDomain.parse(trust_domain)
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        signer = parent or self
        extensions: list[tuple[x509.ExtensionType, bool]] = []
        if ca is not None:
            constraints = x509.BasicConstraints(ca, path_length)
            extensions.append((constraints, basic_constraints_critical))
        if usage is not None:
            extensions.append((usage, True))
        if key_id:
            identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
            extensions.append((identifier, False))
        if uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in uris]
            extensions.append((x509.SubjectAlternativeName(names), False))
        if extended_key_usage:
            extensions.append((x509.ExtendedKeyUsage(extended_key_usage), False))
        if name_constraints is not None:
            extensions.append((name_constraints, name_constraints_critical))
        extensions += more
        now = datetime.now(UTC)
        subject = organization(name)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(parent.certificate.subject if parent else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + not_before)
            .not_valid_after(now + not_after)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        self.certificate = builder.sign(signer.key, hash_for(signer.key))


def chain_of(root: Authority, count: int) -> list[OddAuthority]:
    """So many intermediates below `root`, the one that signs leaves first."""
    chain: list[OddAuthority] = []
    for number in range(count):
        parent = chain[-1] if chain else root
        chain.append(OddAuthority(root.trust_domain.name, f"intermediate {number}", parent=parent))
    return chain[::-1]


def odd_leaf(authority: Authority, san: bytes) -> Issued:
    """A leaf whose subject alternative name is whatever bytes these are."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(organization("SPIRE"))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.UnrecognizedExtension(SAN, san), False)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(key_usage(), True)
        .add_extension(x509.ExtendedKeyUsage(BOTH_USAGES), False)
        .sign(authority.key, SHA256())
    )
    return Issued((certificate,), key)


def san_of(tag: int, *values: bytes) -> bytes:
    """The DER of a subject alternative name with general names of one context tag."""
    body = b"".join(bytes([tag, len(value)]) + value for value in values)
    return bytes([0x30, len(body)]) + body


def bundle_of(*authorities: Authority) -> TrustBundle:
    """One trust bundle with several authorities."""
    return TrustBundle(authorities[0].trust_domain, tuple(one.certificate for one in authorities))


def openssl_cannot_read(authority: Authority) -> bytes:
    """The authority's certificate with a subject that is no UTF-8.

    cryptography reads a name when it is asked for it, OpenSSL when it reads the certificate.
    """
    der = authority.certificate.public_bytes(Encoding.DER)
    name = b"\x0c\x06SPIFFE"
    assert name in der
    return der.replace(name, b"\x0c\x06SPI\xff\xff\xff")


def organization(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)])
