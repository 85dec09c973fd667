"""X.509-SVIDs and trust bundles as values, read from DER.

Gets bytes and gives `X509Svid`, `TrustBundle` and certificates, or raises `ValueError` with the
reason; whoever knows whose bytes they are translates that. Nothing is verified here except that
a private key belongs to its leaf: chains are the business of `peer`.
Specification: X509-SVID, and SPIFFE Trust Domain and Bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.serialization import load_der_private_key

from sidecar.core.spiffe_id import SpiffeId, TrustDomain

_PRIVATE_KEY_TYPES = (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Chain = tuple[x509.Certificate, ...]
# Of the certificates of one bundle that are of no use, so many are named.
MOST_TOLD = 3


@dataclass(frozen=True, slots=True)
class X509Svid:
    """One X.509-SVID: leaf first, then intermediates, and the key of the leaf."""

    spiffe_id: SpiffeId
    chain: Chain = field(repr=False)
    private_key: PrivateKey = field(repr=False)  # a key must not reach a log through a repr
    hint: str = ""

    @property
    def leaf(self) -> x509.Certificate:
        """Give the certificate that carries the SPIFFE ID."""
        return self.chain[0]

    @property
    def not_after(self) -> datetime:
        """Give the end of the leaf's validity, in UTC."""
        return self.leaf.not_valid_after_utc

    @property
    def serial(self) -> str:
        """Give the leaf's serial number in hexadecimal, as openssl prints it."""
        return serial_text(self.leaf)


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The authorities of one trust domain; empty means that nothing of it is trusted."""

    trust_domain: TrustDomain
    authorities: Chain = field(repr=False)


Bundles = Mapping[TrustDomain, TrustBundle]


def is_over(not_after: datetime, now: datetime) -> bool:
    """Tell whether a validity has ended; `not_after` belongs to it (RFC 5280 4.1.2.5)."""
    return seconds_left(not_after, now) <= 0


def seconds_left(not_after: datetime, now: datetime) -> float:
    """Return the seconds until a validity has ended, 0 or less when it has."""
    return (not_after - now + datetime.resolution).total_seconds()


def serial_text(certificate: x509.Certificate) -> str:
    """Give a serial number as openssl prints it: upper-case hexadecimal, whole bytes."""
    text = f"{certificate.serial_number:X}"
    return text.zfill(len(text) + len(text) % 2)


def certificate_text(certificate: x509.Certificate) -> str:
    """Return by what a person finds a certificate that may be odd: its name and serial number."""
    try:
        name = certificate.subject.rfc4514_string()[:80]
    except Exception:  # a name is read when it is asked for
        name = "unreadable name"
    return f"{name or 'no name'}, serial {serial_text(certificate)[:40]}"


def certificates(der: bytes) -> Chain:
    """Read concatenated DER certificates (Workload API 5.2.1, FetchX509SVID)."""
    read, unreadable = authorities(der)
    if unreadable:
        raise ValueError(unreadable[0])
    return read


def authorities(der: bytes) -> tuple[Chain, list[str]]:
    """Read what can be read of concatenated DER certificates; return that, and what could not be.

    What is no sequence of certificates at all is `ValueError`: then nothing of it is known.
    """
    read, unreadable = [], []
    parts = _split_der(der)
    for number, part in enumerate(parts, 1):
        try:
            certificate = x509.load_der_x509_certificate(part)
            # A name is read when it is asked for; OpenSSL does not take what has none.
            certificate.subject, certificate.issuer  # noqa: B018
        except Exception as exc:  # the parsers raise more than ValueError
            which = f"certificate {number} of {len(parts)} (SHA-256 {_digest(part)})"
            unreadable.append(f"{which}: {type(exc).__name__}: {exc}"[:300])
        else:
            read.append(certificate)
    return tuple(read), unreadable


def first_of(texts: list[str]) -> list[str]:
    """Return the first of `texts`, and how many more there are: a bundle may have thousands."""
    more = len(texts) - MOST_TOLD
    return [*texts[:MOST_TOLD], *([f"{more} more certificates like these"] if more > 0 else [])]


def _digest(der: bytes) -> str:
    digest = Hash(SHA256())
    digest.update(der)
    return digest.finalize()[:8].hex()


def same_bundles(one: Bundles, other: Bundles) -> bool:
    """Tell whether both trust the same authorities, in whatever order they are listed."""
    return one.keys() == other.keys() and all(
        set(one[key].authorities) == set(other[key].authorities) for key in one
    )


def private_key(pkcs8: bytes, leaf: x509.Certificate) -> PrivateKey:
    """Read a PKCS#8 DER key and prove that it is the key of `leaf`."""
    key = load_der_private_key(pkcs8, None)
    if not isinstance(key, _PRIVATE_KEY_TYPES):
        raise ValueError(f"a key of type {type(key).__name__}, expected ECDSA, RSA or Ed25519")
    if key.public_key() != leaf.public_key():
        raise ValueError("the private key does not belong to the certificate")
    return key


def uri_sans(certificate: x509.Certificate) -> list[str]:
    """Give the URI subject alternative names, none if the extension is absent."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    except Exception as exc:
        # DuplicateExtension, UnsupportedGeneralNameType and whatever else the parser knows.
        raise ValueError(f"the names of the certificate cannot be read: {exc}") from exc
    return extension.value.get_values_for_type(x509.UniformResourceIdentifier)


def _split_der(data: bytes) -> list[bytes]:
    """Cut concatenated ASN.1 SEQUENCEs apart; only their outer lengths are looked at."""
    parts, start = [], 0
    while start < len(data):
        end = start + _sequence_length(data, start)
        if end > len(data):
            raise ValueError("truncated DER")
        parts.append(data[start:end])
        start = end
    return parts


def _sequence_length(data: bytes, start: int) -> int:
    """Give the length of the SEQUENCE at `start`, its header included (X.690 8.1.3)."""
    header = data[start : start + 2]
    if len(header) < 2 or header[0] != 0x30:
        raise ValueError("not a DER certificate")
    if header[1] < 0x80:
        return 2 + header[1]
    size = header[1] & 0x7F
    length = data[start + 2 : start + 2 + size]
    if not 1 <= size <= 4 or len(length) < size:
        raise ValueError("bad DER length")
    return 2 + size + int.from_bytes(length, "big")
