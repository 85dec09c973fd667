"""Two sockets and what waits to be written to each: the base of a stream and of an exchange.

Its methods are plain calls that never wait; the loop makes them when a socket is ready. Not part
of the loop because it holds one connection, where the loop holds them all.
"""

from __future__ import annotations

import math
import selectors
import socket
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import outcome
import trio

from sidecar.adapters.relay.arrival import is_broken, reset_on_close, unacknowledged

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
# One buffer for the whole process: it is filled and emptied within one call, and a buffer per
# connection and direction would cost half a MiB each. What could not be sent at once is copied.
BUFFER = memoryview(bytearray(256 * 1024))
# How often it is looked whether the last bytes have arrived: no event tells.
_ARRIVAL_SECONDS = 0.005


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
    undelivered: bool = False  # something that was meant for the backend never reached it
    first_sent_at: float = field(default=0.0, compare=False)  # on trio's clock; 0: not yet


@dataclass(slots=True)
class Turn:
    """What all connections share: the selector, and the time that this round began.

    `ending` are the connections that only wait for their last bytes to arrive at the backend.
    """

    selector: selectors.BaseSelector
    now: float = 0.0
    heard: float = -math.inf  # when a backend last sent anything
    ending: set[Pair] = field(default_factory=set)
    news: trio.Event = field(default_factory=trio.Event)  # that there is one


class BrokenError(Exception):
    """One end is gone; the text says which and why."""

    def __init__(self, text: str, *, is_peers: bool) -> None:
        super().__init__(text)
        self.is_peers = is_peers


class Pair(ABC):
    """One connection's two sides: what waits to be written, and what is watched for.

    A peer that ends, or can no longer be written to, does not end it at once: what the peer has
    sent is read to its end, sent, and acknowledged by the backend's kernel, and only then the
    backend is told. A reset would overtake those bytes.
    """

    __slots__ = (
        "_asked_last",
        "_backend",
        "_backend_events",
        "_finished",
        "_left",
        "_peer",
        "_peer_end",
        "_peer_events",
        "_peer_is_lost",
        "_peer_is_truncated",
        "_peer_read_wants_write",
        "_task",
        "_to_backend",
        "_to_peer",
        "_traffic",
        "_turn",
        "moved",
    )

    def __init__(
        self, turn: Turn, peer: PeerStream, backend: socket.socket, traffic: Traffic
    ) -> None:
        self._turn, self._traffic = turn, traffic
        self._peer, self._backend = peer, backend
        self._to_backend: memoryview | None = None
        # What waits for the peer; empty means that all is sent but our close_notify.
        self._to_peer: memoryview | None = None
        self._peer_read_wants_write = self._finished = False
        self._asked_last = False  # the last byte that moved went to the backend
        self._peer_is_lost = False  # nothing can be sent to it any more
        self._peer_is_truncated = False  # it ended without close_notify
        self._peer_end = ""  # the reason, in either case
        self._left = 0  # unacknowledged, when that was last looked at
        self._peer_events = self._backend_events = 0
        self._task = trio.lowlevel.current_task()
        self.moved = turn.now

    @property
    def waits_for_answer(self) -> bool:
        """Tell whether the backend is the one to speak: it may have a model to load first."""
        return self._asked_last

    @abstractmethod
    def give_up(self, seconds: float) -> None:
        """End it: no byte has moved for so long."""

    @abstractmethod
    def _peer_is_ready(self, events: int) -> None: ...

    @abstractmethod
    def _backend_is_ready(self, events: int) -> None: ...

    @abstractmethod
    def _settle(self) -> None:
        """Finish, or watch for what comes next."""

    @property
    @abstractmethod
    def _hears_peer(self) -> bool:
        """Tell whether more of the peer is wanted, were there room for it."""

    @property
    @abstractmethod
    def _hears_backend(self) -> bool:
        """Tell whether more of the backend is wanted, were there room for it."""

    @abstractmethod
    def _break(self, error: BrokenError) -> None:
        """Finish because one end is gone."""

    def handle(self, events: int, is_peer: bool) -> None:
        """Move what can be moved now that one side is ready."""
        if self._finished:
            return  # by an earlier event of the same batch
        try:
            if is_peer:
                self._peer_is_ready(events)
            else:
                self._backend_is_ready(events)
            self._settle()
        except BrokenError as exc:
            self._break(exc)
        except Exception as exc:
            self.reset_backend()
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

    def reset_backend(self) -> None:
        """Let the backend see a reset, where TCP would say FIN: what was cut is not complete."""
        reset_on_close(self._backend)

    def moves_on_its_way(self) -> bool:
        """Tell whether a reader, however slow, has taken something since this was last asked."""
        before = self._left
        self._left = unacknowledged(self._backend) + unacknowledged(self._peer.sock)
        if self._left < before:
            self.moved = trio.current_time()
        return self._left < before

    def _has_arrived(self) -> bool:
        """Tell whether all that the peer sent is at the backend; else, have it looked at again."""
        if self._to_backend is not None:
            return False
        if not unacknowledged(self._backend):
            return True
        self._look_again()
        return False

    def _look_again(self) -> None:
        """Have the loop settle this connection again in a moment."""
        self._turn.ending.add(self)
        self._turn.news.set()

    async def flush(self) -> None:
        """Send what was read before a cut; the caller bounds the time.

        Of whoever reads no more, nothing is expected.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush_to_backend)
            with suppress(OSError):
                while self._to_peer and not self._peer_is_lost:
                    self._to_peer = self._to_peer[self._peer.send(self._to_peer) :] or None
                    if self._to_peer:
                        await trio.lowlevel.wait_writable(self._peer.sock)

    async def _flush_to_backend(self) -> None:
        with suppress(OSError):
            while self._to_backend is not None and not is_broken(self._backend):
                sent = self._send_to_backend(self._to_backend)
                self._to_backend = self._to_backend[sent:] or None if self._to_backend else None
                if self._to_backend is not None:
                    await trio.lowlevel.wait_writable(self._backend)
            while unacknowledged(self._backend):  # noqa: ASYNC110 -- the kernel has no event for it
                await trio.sleep(_ARRIVAL_SECONDS)

    def watch(self) -> None:
        """Watch for what there is room for: a full side stops the reading of the other."""
        peer = backend = 0
        if self._hears_peer and self._to_backend is None and not self._peer_read_wants_write:
            peer = READ
        if self._to_peer is not None or self._peer_read_wants_write:
            peer |= WRITE
        if self._hears_backend and self._to_peer is None:
            backend = READ
        if self._to_backend is not None:
            backend |= WRITE
        if peer != self._peer_events:
            self._peer_events = self._set_events(self._peer.sock, self._peer_events, peer, True)
        if backend != self._backend_events:
            self._backend_events = self._set_events(
                self._backend, self._backend_events, backend, False
            )

    def stop_watching(self) -> None:
        """Take both sockets from the selector."""
        self._finished = True
        self._turn.ending.discard(self)
        self._peer_events = self._set_events(self._peer.sock, self._peer_events, 0, True)
        self._backend_events = self._set_events(self._backend, self._backend_events, 0, False)

    def _set_events(self, sock: socket.socket, before: int, after: int, is_peer: bool) -> int:
        if before and after:
            self._turn.selector.modify(sock, after, (self, is_peer))
        elif after:
            self._turn.selector.register(sock, after, (self, is_peer))
        elif before:
            self._turn.selector.unregister(sock)
        return after

    def _drain_peer(self, room: int = len(BUFFER)) -> tuple[int, bool] | None:
        """Read what the peer has sent into `BUFFER`; None when reading has to write first."""
        self._peer_read_wants_write = False
        try:
            return self._peer.drain(BUFFER[:room])
        except BlockingIOError:
            # A key update while the peer does not read.
            self._peer_read_wants_write = True
            return None
        except (EOFError, ConnectionError) as exc:
            self._peer_is_truncated = True
            self._peer_end = self._peer_end or f"peer: {exc}"
            return 0, True

    def _read_from_backend(self) -> int | None:
        """Read what the backend has sent into `BUFFER`; None when it was nothing yet."""
        try:
            count = self._backend.recv_into(BUFFER)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise BrokenError(f"backend: {exc.strerror}", is_peers=False) from exc
        if count:
            self._turn.heard = self._turn.now
            self._asked_last = False
            if not self._peer_end:
                # What is read for a peer that has left is no progress, however much it is: a
                # backend that only talks would keep the connection for as long as it does.
                self.moved = self._turn.now
        return count

    def _send_to_peer(self, data: memoryview) -> int:
        if self._peer_is_lost:
            return len(data)  # for nobody; reading it keeps the backend reading
        try:
            sent = self._peer.send(data)
        except ConnectionError as exc:
            # What it sent before it left is still to be read.
            self._peer_is_lost, self._peer_end = True, f"peer: {exc}"
            return len(data)
        if sent:
            self.moved = self._turn.now
            self._traffic.sent += sent
            if not self._traffic.first_sent_at:
                self._traffic.first_sent_at = self._turn.now
        return sent

    def _end_peer(self) -> bool:
        """Send close_notify; False when the socket is full."""
        if self._peer_is_lost:
            return True
        try:
            return self._peer.send_end()
        except ConnectionError as exc:
            self._peer_is_lost, self._peer_end = True, f"peer: {exc}"
            return True

    def _send_to_backend(self, data: memoryview) -> int:
        try:
            sent = self._backend.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._lose_backend(exc)
            return len(data)
        self.moved, self._asked_last = self._turn.now, True
        self._traffic.received += sent
        return sent

    @abstractmethod
    def _lose_backend(self, exc: OSError) -> None:
        """Deliver nothing more to a backend that has gone."""
