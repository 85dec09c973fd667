"""Bytes between peer and backend: the hot loop of mode `stream`.

Gets the two ends of an admitted connection, moves bytes both ways until both have ended, and
counts them in a `Traffic`. Knows no identity and no policy, and never looks into what it moves.
Back-pressure: a direction that cannot be written stops reading. Half-close is kept both ways.

The connections' life is trio's; only the bytes are not. A task and a nursery for each direction
would cost 8 KiB an idle connection and a coroutine switch a chunk, so all connections share one
selector, one task waits for it, and what is ready is moved by plain calls that never wait.
"""

from __future__ import annotations

import selectors
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import outcome
import trio

_RESET = struct.pack("ii", 1, 0)
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
# One buffer for the whole process: it is filled and emptied within one call, and a buffer per
# connection and direction would cost half a MiB each. What could not be sent at once is copied.
_BUFFER = memoryview(bytearray(256 * 1024))
# Rounds of the selector before other tasks (handshakes, the agent) get their turn.
_ROUNDS = 8
# Silence is looked for this often within its limit, for all connections together.
_SWEEPS = 16


class PeerStream(Protocol):
    """The encrypted side, as `tls.TlsStream` is: nothing of it waits."""

    @property
    def sock(self) -> socket.socket:
        """What to wait on."""

    def drain(self, buffer: memoryview) -> tuple[int, bool]:
        """Read what is there; count, and whether that was the end; raises as `TlsStream`."""

    def send(self, data: memoryview | bytes) -> int:
        """Send what fits; count."""

    def send_end(self) -> bool:
        """End our direction; False when the socket is full."""


@dataclass(slots=True)
class Traffic:
    """Bytes moved, as seen from here, and why it ended."""

    received: int = 0  # from the peer, to the backend
    sent: int = 0  # from the backend, to the peer
    end: str = "cut: shutting down"
    backend_broke: bool = False


class _Broken(Exception):
    """One end is gone; the text says which and why."""


class Relay:
    """Moves the bytes of all connections; `run` is the one task that does it."""

    def __init__(self, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self.now = 0.0

    async def run(self) -> None:
        """Serve every connection until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_silent_ones)
            # Only epoll and kqueue, the defaults of Linux and macOS, have a descriptor to wait on.
            descriptor = self._selector.fileno()
            while True:
                await trio.lowlevel.wait_readable(descriptor)
                self._move()

    def _move(self) -> None:
        self.now = trio.current_time()
        for _ in range(_ROUNDS):
            ready = self._selector.select(0)
            if not ready:
                return
            for key, events in ready:
                connection, is_peer = key.data
                connection.handle(events, is_peer)

    async def _end_silent_ones(self) -> None:
        while True:
            await trio.sleep(self._silence_seconds / _SWEEPS)
            oldest = trio.current_time() - self._silence_seconds
            for connection in [one for one in self._connections if one.moved <= oldest]:
                connection.finish(f"no byte for {self._silence_seconds:g} s")

    async def relay(self, peer: PeerStream, backend: socket.socket, traffic: Traffic) -> None:
        """Move bytes until both sides have ended, one breaks, or none moves for too long."""
        self.now = trio.current_time()
        connection = _Connection(self, self._selector, peer, backend, traffic)
        self._connections.add(connection)
        try:
            connection.watch()
            await trio.lowlevel.wait_task_rescheduled(connection.abort)
        finally:
            # Before the caller closes the sockets: their numbers will be used again.
            connection.stop_watching()
            self._connections.discard(connection)


class _Connection:
    """One connection: what waits to be written each way, and what is watched for."""

    __slots__ = (
        "_backend",
        "_backend_events",
        "_backend_is_broken",
        "_finished",
        "_half_closed",
        "_peer",
        "_peer_events",
        "_peer_read_wants_write",
        "_received_end",
        "_relay",
        "_selector",
        "_sent_end",
        "_task",
        "_to_backend",
        "_to_peer",
        "_traffic",
        "moved",
    )

    def __init__(
        self,
        relay: Relay,
        selector: selectors.BaseSelector,
        peer: PeerStream,
        backend: socket.socket,
        traffic: Traffic,
    ) -> None:
        self._relay, self._selector, self._traffic = relay, selector, traffic
        self._peer, self._backend = peer, backend
        self._to_backend: memoryview | None = None
        # What waits for the peer; empty means that all is sent but our close_notify.
        self._to_peer: memoryview | None = None
        self._received_end = self._half_closed = self._sent_end = False
        self._peer_read_wants_write = self._finished = False
        self._backend_is_broken = ""
        self._peer_events = self._backend_events = 0
        self._task = trio.lowlevel.current_task()
        self.moved = relay.now

    def handle(self, events: int, is_peer: bool) -> None:
        """Move what can be moved now that one side is ready."""
        if self._finished:
            return  # by an earlier event of the same batch
        try:
            if is_peer:
                self._peer_is_ready(events)
            else:
                self._backend_is_ready(events)
            if self._half_closed and self._sent_end:
                self.finish("closed")
            else:
                self.watch()
        except _Broken as exc:
            # What was cut short must not look complete: the peer gets no close_notify, and the
            # backend a reset where TCP would say FIN.
            with suppress(OSError):  # macOS refuses options on a connection that is gone
                self._backend.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.finish(str(exc))
        except Exception as exc:
            self.finish("failed", exc)

    def finish(self, end: str, error: Exception | None = None) -> None:
        """Wake the connection's task; nothing is moved any more."""
        if self._finished:
            return
        self._traffic.end = end
        self.stop_watching()
        result = outcome.Error(error) if error else outcome.Value(None)
        trio.lowlevel.reschedule(self._task, result)

    def abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """Hear of the task's cancellation: from now on nobody else may wake it."""
        self.stop_watching()
        return trio.lowlevel.Abort.SUCCEEDED

    def stop_watching(self) -> None:
        """Take both sockets from the selector."""
        self._finished = True
        self._peer_events = self._set_events(self._peer.sock, self._peer_events, 0, True)
        self._backend_events = self._set_events(self._backend, self._backend_events, 0, False)

    def _peer_is_ready(self, events: int) -> None:
        if events & _WRITE and self._to_peer is not None:
            self._flush_to_peer()
        if events & _READ or self._peer_read_wants_write:
            self._read_peer()

    def _backend_is_ready(self, events: int) -> None:
        if events & _WRITE and self._to_backend is not None:
            sent = self._send_to_backend(self._to_backend)
            self._to_backend = self._to_backend[sent:] or None
            self._end_backend_if_due()
        if events & _READ and self._to_peer is None and not self._sent_end:
            self._read_backend()

    def _read_peer(self) -> None:
        if self._to_backend is not None or self._received_end:
            return
        self._peer_read_wants_write = False
        try:
            count, self._received_end = self._peer.drain(_BUFFER)
        except BlockingIOError:
            # Reading wants to write first: a key update while the peer does not read.
            self._peer_read_wants_write = True
            return
        except EOFError as exc:
            # Without a close_notify bytes may be missing; to that which answers our own there is
            # nothing to miss, and many clients do not send one.
            if not self._sent_end:
                raise _Broken(f"peer: {exc}") from exc
            count, self._received_end = 0, True
        except ConnectionError as exc:
            raise _Broken(f"peer: {exc}") from exc
        sent = self._send_to_backend(_BUFFER[:count]) if count else 0
        if sent < count:
            self._to_backend = memoryview(bytes(_BUFFER[sent:count]))
        self._end_backend_if_due()

    def _read_backend(self) -> None:
        try:
            count = self._backend.recv_into(_BUFFER)
        except BlockingIOError:
            return
        except OSError as exc:
            raise _Broken(f"backend: {exc.strerror}") from exc
        if not count and self._backend_is_broken:
            # Its last words are delivered; they must not look like a complete answer.
            raise _Broken(self._backend_is_broken)
        self._to_peer = _BUFFER[:count]
        self._flush_to_peer()
        if self._to_peer is not None:
            self._to_peer = memoryview(bytes(self._to_peer))

    def _flush_to_peer(self) -> None:
        assert self._to_peer is not None
        try:
            if not self._to_peer:
                if self._peer.send_end():
                    self._to_peer, self._sent_end = None, True
                return
            sent = self._peer.send(self._to_peer)
        except ConnectionError as exc:
            raise _Broken(f"peer: {exc}") from exc
        if sent:
            self.moved = self._relay.now
            self._traffic.sent += sent
        self._to_peer = self._to_peer[sent:] or None

    def _send_to_backend(self, data: memoryview) -> int:
        try:
            sent = self._backend.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._lose_backend(exc)
            return len(data)
        self.moved = self._relay.now
        self._traffic.received += sent
        return sent

    def _end_backend_if_due(self) -> None:
        """Half-close the backend's side once all that the peer sent is delivered."""
        if self._half_closed or not self._received_end or self._to_backend is not None:
            return
        try:
            self._backend.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._lose_backend(exc)
        self._half_closed = True

    def _lose_backend(self, exc: OSError) -> None:
        """Deliver nothing more to a backend that has gone.

        It may have answered before it left, as a server does that takes no such request: what it
        said is still to be read.
        """
        self._backend_is_broken = f"backend: {exc.strerror}"
        self._traffic.backend_broke = True
        self._received_end = self._half_closed = True

    def watch(self) -> None:
        """Watch for what there is room for: a full side stops the reading of the other."""
        deaf = self._received_end or self._to_backend is not None or self._peer_read_wants_write
        peer = 0 if deaf else _READ
        if self._to_peer is not None or self._peer_read_wants_write:
            peer |= _WRITE
        backend = 0 if self._sent_end or self._to_peer is not None else _READ
        if self._to_backend is not None:
            backend |= _WRITE
        if peer != self._peer_events:
            self._peer_events = self._set_events(self._peer.sock, self._peer_events, peer, True)
        if backend != self._backend_events:
            self._backend_events = self._set_events(
                self._backend, self._backend_events, backend, False
            )

    def _set_events(self, sock: socket.socket, before: int, after: int, is_peer: bool) -> int:
        if before and after:
            self._selector.modify(sock, after, (self, is_peer))
        elif after:
            self._selector.register(sock, after, (self, is_peer))
        elif before:
            self._selector.unregister(sock)
        return after
