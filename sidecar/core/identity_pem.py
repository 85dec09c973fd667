"""PEM files of an identity -> the same raw update that the Workload API gives.

Gets the bytes of certificate, key and bundles, gives a `RawUpdate`, or raises `ValueError` with
the file at fault. That key and certificate belong together is looked at here already: of files,
unlike of a message, two of different generations can be read. The rest is `identity_update`'s.
No parser's text goes into a reason: it may quote what it could not read, and that may be a key.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sidecar.core.identity_update import RawSvid, RawUpdate
from sidecar.core.spiffe_id import TrustDomain
from sidecar.core.svid import authorities, uri_sans

# However damaged the rest of the line is: a block that was begun has to be there whole.
_BEGUN = re.compile(rb"-----\s*BEGIN (?:X509 |TRUSTED )?CERTIFICATE")

_BLOCK = re.compile(
    rb"-----BEGIN (?:X509 )?CERTIFICATE-----\s(.*?)-----END (?:X509 )?CERTIFICATE-----", re.DOTALL
)

# A last line that begins a block, or would have.
_CUT = re.compile(rb"(?:\A|\n)-{1,5}(?:B(?:E(?:G(?:I(?:N[^\n]*)?)?)?)?)?\s*\Z")


@dataclass(frozen=True, slots=True)
class IdentityPem:
    """The content of the files; a federated bundle that could not be read is its reason."""

    certificate: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    bundle: bytes = field(repr=False)
    federated: Mapping[TrustDomain, bytes | str] = field(default_factory=dict, repr=False)


def raw_update(pem: IdentityPem) -> RawUpdate:
    """Give the update; a federated bundle that is none costs its own trust domain only."""
    chain = _certificates(pem.certificate, "certificate")
    key = _private_key(pem.private_key, chain)
    bundle = _bundle(pem.bundle, "bundle")
    names = uri_sans(chain[0])
    if not names:
        raise ValueError("certificate: no SPIFFE ID in it, expected one URI SAN")
    federated: dict[str, bytes] = {}
    notes: list[str] = []
    for trust_domain, content in pem.federated.items():
        try:
            if isinstance(content, str):
                raise ValueError(content)
            federated[str(trust_domain)] = _bundle(content, "its file")
        except ValueError as exc:
            notes.append(f"federated bundle '{trust_domain}' left out: {exc}")
    svid = RawSvid(names[0], _der(chain), key, bundle)
    return RawUpdate((svid,), federated, notes=tuple(notes))


def _certificates(pem: bytes, file: str) -> list[x509.Certificate]:
    expected = "expected certificates in PEM"
    if not pem.strip():
        raise ValueError(f"{file}: it is empty, {expected}")
    begun = len(_BEGUN.findall(pem))
    if not begun:
        found = "it looks like DER" if pem[:1] == b"\x30" else "no certificate in it"
        raise ValueError(f"{file}: {found}, {expected}")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except Exception as exc:  # the parsers raise more than ValueError
        raise ValueError(f"{file}: a certificate that cannot be read: {_kind(exc)}") from None
    if len(certificates) != begun or _CUT.search(pem):
        # The parser leaves out what has no end. In a bundle that would be an authority less.
        raise ValueError(f"{file}: cut off in the middle of a certificate")
    return certificates


def _bundle(pem: bytes, file: str) -> bytes:
    """Give a bundle in DER, with what cannot be read if it is whole: it costs itself only."""
    try:
        return _der(_certificates(pem, file))
    except ValueError:
        blocks = _BLOCK.findall(pem)
        if len(blocks) != len(_BEGUN.findall(pem)) or _CUT.search(pem):
            raise
        try:
            der = b"".join(b64decode(b"".join(one.split()), validate=True) for one in blocks)
            readable, _ = authorities(der)
        except ValueError:
            readable = ()
        if not readable:
            raise
        return der


def _private_key(pem: bytes, chain: list[x509.Certificate]) -> bytes:
    """Read the key, whatever its PEM form, and prove that it belongs to the leaf."""
    try:
        key = load_pem_private_key(pem, None)
        public = key.public_key()
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    except TypeError:
        raise ValueError("private key: encrypted, expected one that is not") from None
    except Exception as exc:
        raise ValueError(f"private key: none in PEM that can be read: {_kind(exc)}") from None
    try:
        belongs = chain[0].public_key() == public
    except Exception as exc:
        raise ValueError(f"certificate: its key cannot be read: {_kind(exc)}") from None
    if belongs:
        return der
    if any(_has_key(certificate, public) for certificate in chain[1:]):
        raise ValueError("certificate: its order is wrong, the leaf must come first")
    raise ValueError("certificate and private key do not belong together")


def _has_key(certificate: x509.Certificate, public: object) -> bool:
    try:
        return certificate.public_key() == public
    except Exception:
        return False


def _der(chain: list[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in chain)


def _kind(exc: Exception) -> str:
    return type(exc).__name__
