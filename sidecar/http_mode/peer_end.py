"""The peer's end of one connection: waits for a request, reads what is to be read, sends.

Gets bytes of the peer into the gate and knows nothing of what is decided on them. Raises
`PeerLeftError` as soon as the peer is seen to be gone, and `HttpError` as the gate does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from sidecar.adapters.listener import has_hung_up
from sidecar.adapters.relay import PeerCutError, PeerLeftError
from sidecar.adapters.tls import TlsStream
from sidecar.core.config import TimeoutsTable
from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_gate import HttpGate
from sidecar.core.http_head import RequestHead
from sidecar.http_mode.admission import RefusedError
from sidecar.http_mode.backend_link import FRESH_SECONDS, BackendLink
from sidecar.http_mode.drain import Drain, GivesWayError

T = TypeVar("T")

# Read at a time while a head is looked for; bodies go through the relay's own buffer.
_BUFFER = memoryview(bytearray(64 * 1024))
# The body of a refused request is read to its end when it is short, so that the connection can
# go on; for what is longer, closing is cheaper.
_MAX_SKIPPED_BYTES = 64 * 1024
_SKIP_SECONDS = 1.0
# How often it is looked whether a peer of whom no more is read is still there.
_HUNG_UP_SECONDS = 0.1


class PeerEnd:
    """The peer's socket, and the gate that its bytes go into."""

    def __init__(
        self, peer: TlsStream, gate: HttpGate, timeouts: TimeoutsTable, drain: Drain
    ) -> None:
        self._peer, self._gate, self._timeouts, self._drain = peer, gate, timeouts, drain
        self.ended = False  # whether no request is waited for any more
        self._has_asked = False
        self._read_wants_write = False  # a key update that the peer asked for must go out first

    async def next_head(self, idle_seconds: float, link: BackendLink) -> bool:
        """Wait for a request; False when none comes any more."""
        try:
            return await self._next_head(idle_seconds, link)
        except GivesWayError:
            return False

    async def _next_head(self, idle_seconds: float, link: BackendLink) -> bool:
        if not self._gate.is_idle:
            # Sent ahead: whoever sends a thousand at once must not be served a thousand in a row.
            await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + idle_seconds
        while self._gate.is_idle:
            # An answer to nothing but empty lines would be taken for the next request's.
            if self._gate.sends_nothing_else or not await self._first_byte(deadline, link):
                return False
            await self._read_by(deadline)
        seconds = self._timeouts.request_head
        deadline = trio.current_time() + seconds
        while not self._gate.has_request():
            if not await self._drain.more_bytes(self._peer, deadline):
                raise HttpError(408, "request_timeout", f"no complete head within {seconds:g} s")
            await self._read_by(deadline)
        self._has_asked = True
        return True

    async def _read_by(self, deadline: float) -> None:
        self._read()
        if self._read_wants_write:
            with trio.move_on_at(deadline):
                await self._ready()

    async def _first_byte(self, deadline: float, link: BackendLink) -> bool:
        """Wait for the beginning of a request, and give the backend back while none comes."""
        if self.ended:
            return False
        if link.is_open:
            soon = min(deadline, trio.current_time() + FRESH_SECONDS)
            if await self._wait(soon):
                return True
            link.drop()
        return await self._wait(deadline)

    async def _wait(self, deadline: float) -> bool:
        is_first = not self._has_asked
        return await self._drain.first_bytes(self._peer, deadline, is_first=is_first)

    async def _ready(self) -> None:
        """Wait until there is something to read."""
        if self._read_wants_write:
            self._read_wants_write = False
            await trio.lowlevel.wait_writable(self._peer.sock)
        else:
            await trio.lowlevel.wait_readable(self._peer.sock)

    def _read(self) -> None:
        """Take what the peer has sent; raise `PeerLeftError` at its end."""
        try:
            count, ended = self._peer.drain(_BUFFER)
        except BlockingIOError:
            self._read_wants_write = True
            return
        except (EOFError, ConnectionError) as exc:
            raise PeerLeftError(str(exc)) from exc
        self._gate.receive(_BUFFER[:count])
        if ended:
            raise PeerLeftError("closed")

    async def unless_gone(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do a step that waits for others; raise `PeerLeftError` as soon as nobody needs it."""
        ends: list[Exception] = []  # a nursery would wrap them
        results: list[T] = []
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                try:
                    while self._gate.wants_bytes:
                        await self._ready()
                        self._read()
                    while True:
                        if has_hung_up(self._peer.sock):
                            raise PeerLeftError("closed")
                        await trio.sleep(_HUNG_UP_SECONDS)
                except PeerLeftError as exc:
                    ends.append(exc)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                results.append(await step())
            except (BackendError, RefusedError) as exc:
                ends.append(exc)
            nursery.cancel_scope.cancel()
        if results:
            return results[0]
        end = ends[0]
        try:
            raise end
        finally:
            # What was raised holds the frames that hold it, and the connection with them.
            ends.clear()
            del end

    async def skip_body(self, request: RequestHead) -> bool:
        """Read the rest of a short body; False when it is long, or does not come."""
        self._gate.skip()
        too_long = request.length is None or request.length > _MAX_SKIPPED_BYTES
        if self._gate.request_is_complete or too_long or request.wants_continue:
            return self._gate.request_is_complete
        with trio.move_on_after(_SKIP_SECONDS):
            while not self._gate.request_is_complete:
                await self._ready()
                self._read()
                self._gate.skip()
        return self._gate.request_is_complete

    async def send(self, data: bytes) -> None:
        """Send all of `data`, or raise `PeerLeftError`."""
        left = memoryview(data)
        with trio.move_on_after(self._timeouts.between_bytes):
            try:
                while left:
                    left = left[self._peer.send(left) :]
                    if left:
                        await trio.lowlevel.wait_writable(self._peer.sock)
            except ConnectionError as exc:
                raise PeerLeftError(str(exc)) from exc
            return
        seconds = self._timeouts.between_bytes
        raise PeerCutError(f"the peer did not take its answer within {seconds:g} s")
