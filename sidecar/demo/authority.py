"""A trust domain in memory: an authority that signs X.509-SVIDs.

For the demonstration only. Gets IDs and lifetimes, gives `X509Svid` and the trust bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sidecar.core.spiffe_id import SpiffeId, TrustDomain
from sidecar.core.svid import TrustBundle, X509Svid

_BACKDATED = timedelta(seconds=10)  # as SPIRE does, for clocks that differ a little


def _name(organization: str) -> x509.Name:
    country = x509.NameAttribute(NameOID.COUNTRY_NAME, "US")
    return x509.Name([country, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])


# The subjects that SPIRE gives by default: the same in every trust domain.
_AUTHORITY_NAME = _name("SPIFFE")
_LEAF_NAME = _name("SPIRE")


class Authority:
    """One trust domain's authority."""

    def __init__(self, trust_domain: str) -> None:
        self.trust_domain = TrustDomain.parse(trust_domain)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign_itself()

    @property
    def bundle(self) -> TrustBundle:
        """Give the trust bundle."""
        return TrustBundle(self.trust_domain, (self._certificate,))

    def issue(
        self, spiffe_id: SpiffeId, life: timedelta, dns_names: Sequence[str] = ()
    ) -> X509Svid:
        """Sign an SVID for any ID at all, one of another trust domain included."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
        names += map(x509.DNSName, dns_names)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        leaf = (
            _builder(_LEAF_NAME, _AUTHORITY_NAME, key.public_key(), life)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, SHA256())
        )
        return X509Svid(spiffe_id, (leaf,), key)

    def _sign_itself(self) -> x509.Certificate:
        public = self._key.public_key()
        uri = x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}")
        return (
            _builder(_AUTHORITY_NAME, _AUTHORITY_NAME, public, timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(signs=True), critical=True)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, SHA256())
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
