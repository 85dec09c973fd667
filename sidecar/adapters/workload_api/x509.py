"""FetchX509SVID: the stream of updates that our identity comes from.

Gives an `IdentityEvent` at a time, so that the rotator cannot tell it from another source.
Specification: SPIFFE Workload API 5.2.1 (FetchX509SVID).
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from spiffe._proto import workload_pb2

from sidecar.adapters.workload_api.stream import AgentStream
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.identity_event import Unreadable, Updated
from sidecar.core.identity_update import RawSvid, RawUpdate

METHOD = "/SpiffeWorkloadAPI/FetchX509SVID"


class WorkloadApi(AgentStream[Updated]):
    """The agent as the source of our identity."""

    name = "agent"

    def __init__(self, endpoint: WorkloadEndpoint) -> None:
        super().__init__(endpoint, METHOD, _read)


def _read(message: bytes) -> Updated | Unreadable:
    try:
        response = workload_pb2.X509SVIDResponse.FromString(message)
    except DecodeError as exc:
        return Unreadable(f"{len(message)} bytes that are no X509SVIDResponse: {exc}")
    svids = tuple(
        RawSvid(svid.spiffe_id, svid.x509_svid, svid.x509_svid_key, svid.bundle, svid.hint)
        for svid in response.svids
    )
    return Updated(RawUpdate(svids, dict(response.federated_bundles), len(response.crl)))
