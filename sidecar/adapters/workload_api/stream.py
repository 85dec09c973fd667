"""One stream of whole messages from the agent, re-opened for ever.

Gets an endpoint, a method and the reader of its messages; gives one event for each `await
next_event()`: what the reader made of the newest message, the agent's refusal, or that it is
away. gRPC runs in threads of its own; one thread per stream hands messages to trio, where only
the newest is kept: every message is whole, so there is no queue to fall behind in.
Specification: SPIFFE Workload API 4.2 (Connection Lifetime) and 4.3 (Stream Responses).
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, cast

import grpc
import trio

from sidecar.adapters.workload_api.channel import (
    SECURITY_HEADER,
    end_of,
    keep_poller,
    open_channel,
    somebody_listens,
)
from sidecar.core.address import WorkloadEndpoint
from sidecar.core.backoff import Backoff
from sidecar.core.identity_event import Denied, Lost, Unreadable

FIRST_ANSWER_SECONDS = 10.0
USELESS_SECONDS = 300.0

_AGAIN = Backoff(first=0.1, cap=5.0)
# An agent that answers and hangs up is not back: only a stream that lived this long is a good one.
_GOOD_SECONDS = 1.0
# Nobody listens on the socket: a connect() that fails costs nobody anything, so there is no
# reason to be late when the agent is back. The slow backoff is for an agent that answers.
_KNOCK = Backoff(first=0.05, cap=0.5)

T = TypeVar("T")


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
    end: Denied | Lost | None = None
    answered: bool = False
    is_slow: bool = False  # which was told
    news: trio.Event = field(default_factory=trio.Event)

    def put(self, message: bytes) -> None:
        self.message, self.answered = message, True
        self.news.set()

    def finish(self, end: Denied | Lost) -> None:
        self.end = end
        self.news.set()

    def close(self) -> None:
        self.call.cancel()
        self.channel.close()


class AgentStream(Generic[T]):
    """A client of one method of one agent. One task calls `next_event`; `close` ends the stream."""

    def __init__(
        self, endpoint: WorkloadEndpoint, method: str, read: Callable[[bytes], T | Unreadable]
    ) -> None:
        self._endpoint = endpoint
        self._method = method
        self._read = read
        self._stream: _Stream | None = None
        self._attempt = 0
        self._pause = 0.0
        self._keeper = keep_poller()
        self._good_since: float | None = None

    def accepted(self) -> None:
        """Tell that the last message was good: if the stream lasts, the backoff starts anew."""
        if self._good_since is None:
            self._good_since = trio.current_time()

    def close(self) -> None:
        """End the stream, if there is one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def next_event(
        self, ask_again_seconds: float = float("inf")
    ) -> T | Unreadable | Denied | Lost:
        """Wait for the next event; after `ask_again_seconds` of silence open a fresh stream.

        A fresh stream is answered at once (Workload API 4.3), so asking again is the cheap way
        to find out whether a silent agent still knows us. At once may take long: an agent attests
        us first. That it has not answered is told once, as `Lost`, and the stream goes on; whether
        the agent lives is for gRPC's keepalive to find out.
        """
        while True:
            stream = self._stream or await self._open()
            limit = ask_again_seconds
            if not stream.answered:
                limit = math.inf if stream.is_slow else FIRST_ANSWER_SECONDS
            with trio.move_on_after(limit) as patience:
                await stream.news.wait()
            if patience.cancelled_caught:
                if not stream.answered:
                    stream.is_slow = True
                    return Lost(f"no answer from {self._endpoint} in {limit:g} s, still waiting")
                self.close()
                continue
            if stream.message is not None:
                message, stream.message = stream.message, None
                if stream.end is None:
                    stream.news = trio.Event()
                return self._read(message)
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
            while not await somebody_listens(self._endpoint.address):
                await trio.sleep(_KNOCK.delay(knocks, random.random()))
                knocks += 1
            if knocks:
                self._attempt = 0  # whoever listens now is not the one that failed us
            else:
                await trio.sleep(self._pause)
        channel = open_channel(self._endpoint)
        # Bytes in, bytes out: what a message holds is judged here and not inside gRPC, where
        # one that cannot be decoded would end the stream.
        method: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(self._method)
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
            end: Denied | Lost = Lost("the agent ended the stream")
        except grpc.RpcError as exc:
            end = end_of(exc)
            exc.__traceback__ = None  # it is the call itself, which would hold its own frames
        token.run_sync_soon(stream.finish, end)
    except trio.RunFinishedError:
        stream.call.cancel()


def _is_useless(end: Denied | Lost) -> bool:
    return isinstance(end, Lost) and end.useless
