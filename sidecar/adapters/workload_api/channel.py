"""What all calls to the agent share: the channel, the header, and how a call ends.

Gets an endpoint, gives a gRPC channel to it; turns a gRPC error into `Denied` or `Lost`.
Specification: SPIFFE Workload Endpoint 3 (Transport), 6 (Error Codes) and appendix A.
"""

from __future__ import annotations

import socket
from urllib.parse import quote

import grpc
import trio

from sidecar.core.address import Address, WorkloadEndpoint
from sidecar.core.identity_event import Denied, Lost

# Workload Endpoint 3 (Transport): proof that no confused web client is asking.
SECURITY_HEADER = (("workload.spiffe.io", "true"),)
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
KEEPALIVE_SECONDS = 330

# Workload Endpoint, appendix A: after these codes asking again is of no use. The agent behind
# the address may be replaced one day, so the question is repeated, but rarely.
_USELESS_TO_REPEAT = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    # Channels to one address share a connection and its back-off unless told otherwise.
    ("grpc.use_local_subchannel_pool", 1),
    # An agent that hangs is found by a ping. SPIRE's (grpc-go) ends a connection that is pinged
    # more often than each 5 minutes, or while no call runs.
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # else a minute
    ("grpc.http2.max_pings_without_data", 0),
    # No proxy of the environment between us and the agent.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(endpoint: WorkloadEndpoint) -> grpc.Channel:
    """Give a channel for one call; it connects when the call begins."""
    address = endpoint.address
    # gRPC takes a URI: a path is percent-decoded again.
    target = f"unix:{quote(address.path)}" if address.ip is None else str(address)
    return grpc.insecure_channel(target, options=_OPTIONS)


def keep_poller() -> grpc.Channel:
    """Give a channel that never connects; hold it as long as calls are made now and then.

    While one channel lives gRPC keeps its poller; without any it would make a new one for the
    next call, and abort the process if no descriptor is left for it.
    """
    return grpc.insecure_channel("unix:/dev/null/nobody", options=_OPTIONS)


def end_of(exc: grpc.RpcError) -> Denied | Lost:
    """Tell how a call ended that the agent, or gRPC itself, has failed."""
    code, details = exc.code(), exc.details() or "no details"
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Denied(details[:500])
    return Lost(f"{code.name}: {details[:500]}", useless=code in _USELESS_TO_REPEAT)


async def somebody_listens(address: Address) -> bool:
    """Tell whether the agent's socket takes a connection."""
    family = socket.AddressFamily[address.family]
    try:
        with trio.socket.socket(family, socket.SOCK_STREAM) as knock, trio.fail_after(1.0):
            await knock.connect(address.sockaddr)
    except (OSError, trio.TooSlowError):
        return False
    return True
