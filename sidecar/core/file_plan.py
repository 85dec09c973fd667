"""Identity -> names, modes and bytes of the certificate files of one generation.

Gets an SVID, trust bundles and the `[cert_files]` table, gives a `FilePlan`; never touches a
disk. Each federated trust domain has a file of its own: in one file with ours, its authorities
could sign for our trust domain in the eyes of every program that reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core.files_config import LAYOUTS, CertFilesTable, federated_name
from sidecar.core.svid import Bundles, X509Svid, is_over

# POSIX NAME_MAX, of every file system that we are likely to meet.
NAME_MAX = 255


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a generation."""

    name: str
    mode: int
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class FilePlan:
    """The files of one generation; `certificate` and `private_key` name two that are a pair.

    `names` holds the name of each file by its key in the configuration; `notes` say what was left
    out, and why.
    """

    files: tuple[PlannedFile, ...]
    certificate: str
    private_key: str
    names: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def file_plan(svid: X509Svid, bundles: Bundles, table: CertFilesTable, now: datetime) -> FilePlan:
    """Give the files for an SVID: chain, key (PKCS#8) and bundles, each in PEM."""
    default = LAYOUTS[table.layout]
    certificate = table.certificate or default[0]
    private_key = table.private_key or default[1]
    bundle = table.bundle or default[2]
    own = svid.spiffe_id.trust_domain
    intermediates = svid.chain[1:] if table.intermediates_in_bundle else ()
    chain = svid.chain[:1] if table.intermediates_in_bundle else svid.chain
    authorities = [*bundles[own].authorities, *intermediates]
    if table.unsafe_merge_federated:
        authorities += [
            one for other in sorted(bundles.keys() - {own}) for one in bundles[other].authorities
        ]
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public, secret = table.certificate_mode, table.key_mode
    names: dict[str, str] = {
        "certificate": certificate,
        "private_key": private_key,
        "bundle": bundle,
    }
    files = [
        PlannedFile(certificate, public, _pem(chain)),
        PlannedFile(private_key, secret, key),
        PlannedFile(bundle, public, _pem(_kept(authorities, table, now))),
    ]
    if table.combined:
        names["combined"] = table.combined
        files.append(PlannedFile(table.combined, secret, key + _pem(chain)))
    notes: list[str] = []
    if table.federated_bundles:
        for other in sorted(bundles.keys() - {own}):
            name = federated_name(bundle, other)
            if len(name) > NAME_MAX:
                notes.append(f"bundle of {other} not written: its name would be too long")
                continue
            kept = _kept(bundles[other].authorities, table, now)
            files.append(PlannedFile(name, public, _pem(kept)))
    return FilePlan(tuple(files), certificate, private_key, names, tuple(notes))


def _kept(
    authorities: Iterable[x509.Certificate], table: CertFilesTable, now: datetime
) -> Iterator[x509.Certificate]:
    """Leave out expired authorities if that is asked for."""
    for one in authorities:
        if not table.omit_expired_authorities or not is_over(one.not_valid_after_utc, now):
            yield one


def _pem(chain: Iterable[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
