"""The SPIRE agent: one gRPC stream of whole updates, re-opened for ever.

Gets an endpoint, gives one `AgentEvent` for each `await next_event()`: the newest update, the
agent's refusal, or that it is away. Never interprets an update and never raises for what the
agent does. gRPC runs in threads of its own; one thread per stream hands messages to trio, where
only the newest is kept: every message is whole, so there is no queue to fall behind in.
Specification: SPIFFE Workload Endpoint 3, 6 and appendix A; Workload API 4 and 5.2.1.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast
from urllib.parse import quote

import grpc
import trio
from google.protobuf.message import DecodeError
from spiffe._proto import workload_pb2

from sidecar.core.address import Address, WorkloadEndpoint
from sidecar.core.backoff import Backoff
from sidecar.core.identity_update import RawSvid, RawUpdate

METHOD = "/SpiffeWorkloadAPI/FetchX509SVID"
# Workload Endpoint 3 (Transport): proof that no confused web client is asking.
SECURITY_HEADER = (("workload.spiffe.io", "true"),)
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
FIRST_ANSWER_SECONDS = 10.0

_AGAIN = Backoff(first=0.1, cap=5.0)
# An agent that answers and hangs up is not back: only a stream that lived this long is a good one.
_GOOD_SECONDS = 1.0
# Nobody listens on the socket: a connect() that fails costs nobody anything, so there is no
# reason to be late when the agent is back. The slow backoff is for an agent that answers.
_KNOCK = Backoff(first=0.05, cap=0.5)
# Workload Endpoint, appendix A: after these codes asking again is of no use. The agent behind
# the address may be replaced one day, so the question is repeated, but rarely.
_USELESS_TO_REPEAT = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
USELESS_SECONDS = 300.0

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    # Channels to one address share a connection and its back-off unless told otherwise.
    ("grpc.use_local_subchannel_pool", 1),
    # No proxy of the environment between us and the agent.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class Updated:
    """The agent sent a whole update."""

    update: RawUpdate = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The agent sent something that is no `X509SVIDResponse`; the stream goes on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The agent says that this process has no identity (any more)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The agent is away; `useless` when it is there but serves no Workload API."""

    reason: str
    useless: bool = False


AgentEvent = Updated | Unreadable | Denied | Lost


class _Call(Protocol):
    """What a running call offers; grpc's own type for it is private."""

    def __iter__(self) -> Iterator[bytes]: ...

    def cancel(self) -> bool: ...


@dataclass(slots=True)
class _Stream:
    """One open call and what its thread has handed over; touched by trio's thread only."""

    channel: grpc.Channel
    call: _Call
    message: bytes | None = None
    end: AgentEvent | None = None
    answered: bool = False
    news: trio.Event = field(default_factory=trio.Event)

    def put(self, message: bytes) -> None:
        self.message, self.answered = message, True
        self.news.set()

    def finish(self, end: AgentEvent) -> None:
        self.end = end
        self.news.set()

    def close(self) -> None:
        self.call.cancel()
        self.channel.close()


class WorkloadApi:
    """A client of one agent. One task calls `next_event`; `close` ends the stream."""

    def __init__(self, endpoint: WorkloadEndpoint) -> None:
        self._endpoint = endpoint
        self._stream: _Stream | None = None
        self._attempt = 0
        self._pause = 0.0
        # Never connects. While one channel lives gRPC keeps its poller; without any it would make
        # a new one for the next stream, and abort the process if no descriptor is left for it.
        self._keeper = grpc.insecure_channel("unix:/dev/null/nobody", options=_CHANNEL_OPTIONS)
        self._good_since: float | None = None

    def accepted(self) -> None:
        """Tell that the last update was good: if the stream lasts, the backoff starts anew."""
        if self._good_since is None:
            self._good_since = trio.current_time()

    def close(self) -> None:
        """End the stream, if there is one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def next_event(self, ask_again_seconds: float = float("inf")) -> AgentEvent:
        """Wait for the next event; after `ask_again_seconds` of silence open a fresh stream.

        A fresh stream is answered at once (Workload API 4.3), so asking again is the cheap way
        to find out whether a silent agent still knows us.
        """
        while True:
            stream = self._stream or await self._open()
            limit = ask_again_seconds if stream.answered else FIRST_ANSWER_SECONDS
            with trio.move_on_after(limit) as patience:
                await stream.news.wait()
            if patience.cancelled_caught:
                answered = stream.answered
                self.close()
                if not answered:
                    self._lose(0.0)
                    return Lost(f"no answer from {self._endpoint} in {limit:g} s")
                continue
            if stream.message is not None:
                message, stream.message = stream.message, None
                if stream.end is None:
                    stream.news = trio.Event()
                return _read(message)
            assert stream.end is not None
            self.close()
            self._lose(USELESS_SECONDS if _is_useless(stream.end) else 0.0)
            return stream.end

    def _lose(self, seconds: float) -> None:
        if self._good_since is not None and trio.current_time() > self._good_since + _GOOD_SECONDS:
            self._attempt = 0
        self._good_since = None
        self._pause = seconds or _AGAIN.delay(self._attempt, random.random())
        self._attempt += 1

    async def _open(self) -> _Stream:
        """Open a stream; after a loss, not before the pause is over and somebody listens."""
        if self._attempt:
            knocks = 0
            while not await _somebody_listens(self._endpoint.address):
                await trio.sleep(_KNOCK.delay(knocks, random.random()))
                knocks += 1
            if knocks:
                self._attempt = 0  # whoever listens now is not the one that failed us
            else:
                await trio.sleep(self._pause)
        address = self._endpoint.address
        # gRPC takes a URI: a path is percent-decoded again.
        target = f"unix:{quote(address.path)}" if address.ip is None else str(address)
        channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        # Bytes in, bytes out: what a message holds is judged here and not inside gRPC, where
        # one that cannot be decoded would end the stream.
        method: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHOD)
        call = cast(_Call, method(b"", metadata=SECURITY_HEADER))
        self._stream = stream = _Stream(channel, call)
        token = trio.lowlevel.current_trio_token()
        threading.Thread(
            target=_pump, args=(stream, token), name="workload-api", daemon=True
        ).start()
        return stream


def _pump(stream: _Stream, token: trio.lowlevel.TrioToken) -> None:
    """Hand over what the call yields, then how it ended. Runs in a thread."""
    try:
        try:
            for message in stream.call:
                token.run_sync_soon(stream.put, message)
            end: AgentEvent = Lost("the agent ended the stream")
        except grpc.RpcError as exc:
            end = _end_of(exc)
        token.run_sync_soon(stream.finish, end)
    except trio.RunFinishedError:
        stream.call.cancel()


def _end_of(exc: grpc.RpcError) -> AgentEvent:
    code, details = exc.code(), exc.details() or "no details"
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Denied(details[:500])
    return Lost(f"{code.name}: {details[:500]}", useless=code in _USELESS_TO_REPEAT)


def _is_useless(event: AgentEvent) -> bool:
    return isinstance(event, Lost) and event.useless


def _read(message: bytes) -> AgentEvent:
    try:
        response = workload_pb2.X509SVIDResponse.FromString(message)
    except DecodeError as exc:
        return Unreadable(f"{len(message)} bytes that are no X509SVIDResponse: {exc}")
    svids = tuple(
        RawSvid(svid.spiffe_id, svid.x509_svid, svid.x509_svid_key, svid.bundle, svid.hint)
        for svid in response.svids
    )
    return Updated(RawUpdate(svids, dict(response.federated_bundles), len(response.crl)))


async def _somebody_listens(address: Address) -> bool:
    """Tell whether the agent's socket takes a connection."""
    family = socket.AddressFamily[address.family]
    try:
        with trio.socket.socket(family, socket.SOCK_STREAM) as knock, trio.fail_after(1.0):
            await knock.connect(address.sockaddr)
    except (OSError, trio.TooSlowError):
        return False
    return True
