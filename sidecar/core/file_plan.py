"""Identity -> names, modes and bytes of the certificate files of one generation.

Gets an SVID and its trust bundle, gives a `FilePlan`; never touches a disk. The layout is
spiffe-helper's, so that what reads spiffe-helper's files reads ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core.svid import Chain, TrustBundle, X509Svid


@dataclass(frozen=True, slots=True)
class FileNames:
    """The file names of a layout."""

    certificate: str = "svid.pem"
    private_key: str = "svid_key.pem"
    bundle: str = "svid_bundle.pem"


@dataclass(frozen=True, slots=True)
class FileModes:
    """Permission bits of the files."""

    certificate: int = 0o644
    private_key: int = 0o600


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a generation."""

    name: str
    mode: int
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class FilePlan:
    """The files of one generation, and which two of them must be a pair."""

    files: tuple[PlannedFile, ...]
    certificate: str
    private_key: str


def file_plan(svid: X509Svid, bundle: TrustBundle, names: FileNames, modes: FileModes) -> FilePlan:
    """Give the files for an SVID: chain, key (PKCS#8) and bundle, each in PEM."""
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files = (
        PlannedFile(names.certificate, modes.certificate, _pem(svid.chain)),
        PlannedFile(names.private_key, modes.private_key, key),
        PlannedFile(names.bundle, modes.certificate, _pem(bundle.authorities)),
    )
    return FilePlan(files, names.certificate, names.private_key)


def _pem(chain: Chain) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
