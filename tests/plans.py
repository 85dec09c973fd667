"""Plans of certificate files in every layout, and single files, for tests of all rooms."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sidecar.core.file_plan import FilePlan, PlannedFile, file_plan
from sidecar.core.files_config import CertFilesTable
from sidecar.core.svid import Bundles, X509Svid
from sidecar.core.toml_tables import FilePath
from tests.ca import Authority

JWT = "vault.jwt"
# Each kind of layout that a configuration can ask for, by the keys that do.
LAYOUTS: dict[str, dict[str, Any]] = {
    "spiffe-helper": {},
    "kubernetes": {"layout": "kubernetes"},
    "own-names": {
        "certificate": "server.crt",
        "private_key": "server.key",
        "bundle": "authorities.crt",
        "combined": "server.pem",
    },
    "federated": {"federated_bundles": True},
    "richest": {
        "layout": "kubernetes",
        "combined": "both.pem",
        "key_mode": 0o640,
        "federated_bundles": True,
        "intermediates_in_bundle": True,
        "omit_expired_authorities": True,
    },
}


def cert_files(**keys: Any) -> CertFilesTable:
    """A `[cert_files]` table."""
    return CertFilesTable(directory=FilePath("certs"), **keys)


def bundles(*authorities: Authority) -> Bundles:
    """The bundle of each trust domain."""
    return {one.trust_domain: one.bundle for one in authorities}


def plan(
    authority: Authority,
    *others: Authority,
    svid: X509Svid | None = None,
    now: datetime | None = None,
    **keys: Any,
) -> FilePlan:
    """The files for an SVID (a new one, if none is given) of the first authority."""
    return file_plan(
        svid or authority.svid(),
        bundles(authority, *others),
        cert_files(**keys),
        now or datetime.now(UTC),
    )


def content(planned: FilePlan) -> dict[str, bytes]:
    """What is in each file."""
    return {file.name: file.content for file in planned.files}


def modes(planned: FilePlan) -> dict[str, int]:
    """The mode of each file."""
    return {file.name: file.mode for file in planned.files}


def plans(count: int, layout: str = "spiffe-helper") -> list[FilePlan]:
    """Plans that differ, of a trust domain with an intermediate, and a federated one beside it."""
    authority, partner = Authority("example.org"), Authority("partner.example")
    middle = authority.intermediate()
    found = []
    for _ in range(count):
        issued = middle.sign(authority.leaf(), middle)
        svid = X509Svid(authority.svid().spiffe_id, issued.chain, issued.key)
        found.append(plan(authority, partner, svid=svid, **LAYOUTS[layout]))
    return found


def token(number: int, mode: int = 0o640) -> PlannedFile:
    """A JWT-SVID, as far as a disk is concerned: it is whole if it ends as it begins."""
    mark = b"%06d" % (number % 1_000_000)
    return PlannedFile(JWT, mode, mark + b"." * 4096 + mark)


def token_is_whole(content: bytes) -> bool:
    """Tell whether a token was read to its end."""
    return len(content) == 4108 and content[:6] == content[-6:]
