"""All JWT-SVIDs and JWT bundles of a configuration, fetched and written one time."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.adapters.tls import ServerIdentity
from sidecar.adapters.workload_api import JwtBundleStream
from sidecar.core.after_rotation import Publication
from sidecar.core.errors import AgentProtocolError, FetchError
from sidecar.core.files_config import CertFilesTable, JwtSvidTable
from sidecar.jwt_keeper.bundle_files import BundleFiles, checked
from sidecar.jwt_keeper.jwt_files import JwtFiles
from sidecar.jwt_keeper.svid_file import SvidFile


async def fetch_jwt_files(
    place: JwtFiles,
    table: CertFilesTable,
    tables: Sequence[JwtSvidTable],
    identity: ServerIdentity,
) -> tuple[Publication, ...]:
    """Write every file once, and give what there is to tell.

    Raises `FetchError` or `CertFilesError` with the first reason; asking again is the caller's.
    """
    told: list[Publication] = []
    try:
        for one in tables:
            file = SvidFile(place, one)
            fresh = await file.fetch()
            await file.write(fresh.svid)
            told.append(file.publication(fresh.svid))
        if table.jwt_bundle:
            target = BundleFiles(place, table)
            await _write_bundles(place, target, identity)
            told.append(target.publication(identity))
    except AgentProtocolError as exc:
        raise FetchError(exc.message, exc.hint) from exc
    return tuple(told)


async def _write_bundles(place: JwtFiles, target: BundleFiles, identity: ServerIdentity) -> None:
    own = identity.svid.spiffe_id.trust_domain
    stream = JwtBundleStream(place.endpoint)
    try:
        bundles = checked(await stream.next_event(), own)
    finally:
        stream.close()
    await target.write(bundles, own)
