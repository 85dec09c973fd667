"""The SPIRE agent: its Workload API over gRPC, whose streams are re-opened for ever.

    channel   where the agent is, what every call carries, and how a call ends
    stream    one stream of whole messages: reconnects, keeps the newest, never queues
    x509      FetchX509SVID, a stream of updates: the source of our identity
    jwt       FetchJWTSVID, one question and its answer; FetchJWTBundles, a stream

Never interprets a message and never raises for what the agent does: that the agent refuses, is
away or talks nonsense are values, `Denied`, `Lost` and `Unreadable`.
Specification: SPIFFE Workload Endpoint 3, 6 and appendix A; Workload API 4, 5.2.1, 6.2.
"""

from sidecar.adapters.workload_api.channel import MAX_MESSAGE_BYTES, SECURITY_HEADER
from sidecar.adapters.workload_api.jwt import (
    ANSWER_SECONDS,
    JWT_BUNDLES_METHOD,
    JWT_SVID_METHOD,
    JwtBundleStream,
    fetch_jwt_svids,
)
from sidecar.adapters.workload_api.stream import (
    FIRST_ANSWER_SECONDS,
    USELESS_SECONDS,
    AgentStream,
)
from sidecar.adapters.workload_api.x509 import METHOD, WorkloadApi

__all__ = [
    "ANSWER_SECONDS",
    "FIRST_ANSWER_SECONDS",
    "JWT_BUNDLES_METHOD",
    "JWT_SVID_METHOD",
    "MAX_MESSAGE_BYTES",
    "METHOD",
    "SECURITY_HEADER",
    "USELESS_SECONDS",
    "AgentStream",
    "JwtBundleStream",
    "WorkloadApi",
    "fetch_jwt_svids",
]
