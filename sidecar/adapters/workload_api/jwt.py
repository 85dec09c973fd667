"""The JWT part of the Workload API: one question for tokens, and the stream of JWT bundles.

Gives raw fields; whether they are JWT-SVIDs and JWK Sets is for `core.jwt_svid` and
`core.jwt_bundle` to say. A token is a secret: no value of this module shows one in its repr.
Specification: SPIFFE Workload API 6.2 (Profile RPCs).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import grpc
import trio
from google.protobuf.message import DecodeError
from spiffe._proto import workload_pb2

from sidecar.adapters.workload_api.channel import SECURITY_HEADER, end_of, open_channel
from sidecar.adapters.workload_api.stream import AgentStream
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.identity_event import Denied, Lost, Unreadable
from sidecar.core.jwt_bundle import RawJwtBundles
from sidecar.core.jwt_svid import RawJwtSvid
from sidecar.core.spiffe_id import SpiffeId

JWT_SVID_METHOD = "/SpiffeWorkloadAPI/FetchJWTSVID"
JWT_BUNDLES_METHOD = "/SpiffeWorkloadAPI/FetchJWTBundles"
ANSWER_SECONDS = 60.0  # an agent may attest us for half of that first

JwtSvidAnswer = tuple[RawJwtSvid, ...] | Unreadable | Denied | Lost


async def fetch_jwt_svids(
    endpoint: WorkloadEndpoint, audiences: Sequence[str], spiffe_id: SpiffeId | None = None
) -> JwtSvidAnswer:
    """Ask for JWT-SVIDs for these audiences: of one ID, or of every ID that is ours."""
    wanted = str(spiffe_id) if spiffe_id else ""
    request = workload_pb2.JWTSVIDRequest(audience=audiences, spiffe_id=wanted)
    answer = await _ask(endpoint, JWT_SVID_METHOD, request.SerializeToString())
    return _read_svids(answer) if isinstance(answer, bytes) else answer


class JwtBundleStream(AgentStream[RawJwtBundles]):
    """The agent as the source of JWT bundles."""

    def __init__(self, endpoint: WorkloadEndpoint) -> None:
        super().__init__(endpoint, JWT_BUNDLES_METHOD, _read_bundles)


async def _ask(endpoint: WorkloadEndpoint, method: str, request: bytes) -> bytes | Denied | Lost:
    """Make one unary call; it ends with its answer, at the deadline, or when we are cancelled."""
    channel = open_channel(endpoint)
    try:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        future = call.future(request, metadata=SECURITY_HEADER)
        done, token = trio.Event(), trio.lowlevel.current_trio_token()

        def tell(_future: object) -> None:  # in a thread of gRPC's
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        future.add_done_callback(tell)
        # Our deadline and not gRPC's, so that it is told as that of a stream is.
        with trio.move_on_after(ANSWER_SECONDS) as patience:
            await done.wait()
        if patience.cancelled_caught:
            return Lost(f"no answer from {endpoint} in {ANSWER_SECONDS:g} s")
        return future.result()
    except grpc.RpcError as exc:
        return end_of(exc)
    finally:
        channel.close()  # ends the call too


def _read_svids(message: bytes) -> tuple[RawJwtSvid, ...] | Unreadable:
    try:
        response = workload_pb2.JWTSVIDResponse.FromString(message)
    except DecodeError as exc:
        return Unreadable(f"{len(message)} bytes that are no JWTSVIDResponse: {exc}")
    return tuple(RawJwtSvid(svid.spiffe_id, svid.svid, svid.hint) for svid in response.svids)


def _read_bundles(message: bytes) -> RawJwtBundles | Unreadable:
    try:
        response = workload_pb2.JWTBundlesResponse.FromString(message)
    except DecodeError as exc:
        return Unreadable(f"{len(message)} bytes that are no JWTBundlesResponse: {exc}")
    return RawJwtBundles(dict(response.bundles))
