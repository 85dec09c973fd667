"""Test authorities on trustme's CAs, and leaves that break one rule each.

trustme makes no URI names, so leaves are signed here with the key of its CA. A `Leaf` begins as
a good X.509-SVID; a test changes the one field whose rule it is about.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import TrustBundle, X509Svid

BOTH_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def key_usage(**bits: bool) -> x509.KeyUsage:
    """A KeyUsage with digitalSignature, changed by `bits`."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{**dict.fromkeys(names, False), "digital_signature": True, **bits})


@dataclass(frozen=True)
class Leaf:
    """What goes into a leaf; None leaves an extension out."""

    uris: tuple[str, ...]
    dns: tuple[str, ...] = ()
    san_critical: bool = False
    subject: str | None = "SPIRE"
    basic_constraints: x509.BasicConstraints | None = field(
        default_factory=lambda: x509.BasicConstraints(ca=False, path_length=None)
    )
    key_usage: x509.KeyUsage | None = field(default_factory=key_usage)
    key_usage_critical: bool = True
    extended_key_usage: tuple[x509.ObjectIdentifier, ...] | None = BOTH_USAGES
    authority_key_id: bool = True
    unknown_critical_extension: bool = False
    not_before: timedelta = timedelta(seconds=-10)
    not_after: timedelta = timedelta(hours=1)
    key: Key | None = None


class Authority:
    """One trust domain's authority (or an intermediate of it) that signs whatever it is told."""

    def __init__(self, trust_domain: str, ca: trustme.CA | None = None) -> None:
        self.trust_domain = TrustDomain.parse(trust_domain)
        self.ca = ca or trustme.CA(organization_name="SPIFFE", organization_unit_name=trust_domain)
        self.certificate = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        key = load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.key: Any = key

    @property
    def bundle(self) -> TrustBundle:
        return TrustBundle(self.trust_domain, (self.certificate,))

    def intermediate(self) -> Authority:
        """An authority below this one."""
        return Authority(self.trust_domain.name, self.ca.create_child_ca())

    def leaf(self, path: str = "/workload/model-server") -> Leaf:
        """A good leaf of this trust domain."""
        return Leaf(uris=(f"spiffe://{self.trust_domain}{path}",))

    def sign(self, leaf: Leaf, *intermediates: Authority) -> Issued:
        """Sign a leaf; `intermediates` go into the chain as they are given."""
        key = leaf.key or ec.generate_private_key(ec.SECP256R1())
        chain = (self._certificate(leaf, key), *(one.certificate for one in intermediates))
        return Issued(chain, key)

    def svid(self, path: str = "/workload/model-server", **changes: object) -> X509Svid:
        """A good SVID as a value; `hint` and the fields of `Leaf` can be changed."""
        hint = str(changes.pop("hint", ""))
        issued = self.sign(replace(self.leaf(path), **changes))  # type: ignore[arg-type]
        return X509Svid(SpiffeId(self.trust_domain, path), issued.chain, issued.key, hint)

    def _certificate(self, leaf: Leaf, key: Key) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(leaf.subject))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + leaf.not_before)
            .not_valid_after(now + leaf.not_after)
        )
        names: list[x509.GeneralName] = [_uri(uri) for uri in leaf.uris]
        names += map(x509.DNSName, leaf.dns)
        extensions: list[tuple[x509.ExtensionType | None, bool]] = [
            (x509.SubjectAlternativeName(names) if names else None, leaf.san_critical),
            (leaf.basic_constraints, True),
            (leaf.key_usage, leaf.key_usage_critical),
        ]
        if leaf.extended_key_usage is not None:
            extensions.append((x509.ExtendedKeyUsage(leaf.extended_key_usage), False))
        if leaf.authority_key_id:
            public = self.key.public_key()
            extensions.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(public), False))
        if leaf.unknown_critical_extension:
            oid = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
            extensions.append((x509.UnrecognizedExtension(oid, b"\x05\x00"), True))
        for extension, critical in extensions:
            if extension is not None:
                builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hash_for(self.key))


@dataclass(frozen=True)
class Issued:
    """A signed leaf with its chain and key, good or not."""

    chain: tuple[x509.Certificate, ...]
    key: Key

    def write(self, folder: Path, name: str) -> Path:
        """Write chain and key into one PEM file, as a TLS client loads it."""
        path = folder / f"{name}.pem"
        path.write_bytes(
            self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + b"".join(one.public_bytes(Encoding.PEM) for one in self.chain)
        )
        return path


@lru_cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """An RSA key; slow to make, so made once."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def hash_for(key: Key) -> SHA256 | None:
    """The hash to sign with; Ed25519 has its own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()


def _subject(organization: str | None) -> x509.Name:
    if organization is None:
        return x509.Name([])
    attribute = x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization)
    return x509.Name([attribute])


def _uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)
