"""Mode `http`: one admitted request and its answer, through the gate.

All bytes of the peer go into `HttpGate` and only what comes out of it goes to the backend, and
the other way round. A peer that leaves is noticed at once and ends it: an answer that nobody
reads costs the model server its time.
"""

from __future__ import annotations

import enum
import socket

from sidecar.adapters.relay.pair import (
    BUFFER,
    READ,
    WRITE,
    BrokenError,
    Pair,
    PeerStream,
    Traffic,
    Turn,
)
from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_gate import HttpGate
from sidecar.core.limits import Pace

_CHUNKED_BYTES = 16384


class PeerLeftError(Exception):
    """The peer is gone before it had its answer."""


class PeerCutError(PeerLeftError):
    """The peer is there and was not waited for any longer; the text says why."""


class Waited(enum.Enum):
    """What was waited for in vain, and the key of [timeouts] that says for how long."""

    BODY = "no byte of the request's body", "between_bytes"
    ANSWER = "no byte of an answer", "first_byte"
    REST = "no further byte of the answer", "between_bytes"
    READER = "the peer took no byte of its answer", "between_bytes"


class SilenceError(Exception):
    """No byte has moved for too long."""

    def __init__(self, waited: Waited, seconds: float) -> None:
        self.waited, self.seconds = waited, seconds
        what, key = waited.value
        super().__init__(f"{what} for {seconds:g} s ([timeouts] {key})")


class ExchangeBrokenError(BackendError):
    """The backend broke the connection before its answer was complete."""


class Exchange(Pair):
    """One request and its answer."""

    __slots__ = (
        "_backend_is_lost",
        "_body_seconds",
        "_gate",
        "_peer_has_ended",
        "_reader_seconds",
    )

    def __init__(
        self,
        turn: Turn,
        peer: PeerStream,
        backend: socket.socket,
        gate: HttpGate,
        traffic: Traffic,
    ) -> None:
        super().__init__(turn, peer, backend, traffic)
        self._gate = gate
        self._backend_is_lost = self._peer_has_ended = False
        self._body_seconds = self._reader_seconds = 0.0  # that the peer has kept us waiting

    def begin(self, to_backend: bytes, to_peer: bytes) -> None:
        """Send what goes first: the request's head, and the word to continue."""
        try:
            self._forward(memoryview(to_backend))
            self._answer(memoryview(to_peer))
            self._traffic.first_sent_at = 0.0  # the word to continue is no answer
            self._check_ahead()
        except BrokenError as exc:
            self.reset_backend()
            self._traffic.end = str(exc)
            raise _who_broke(exc) from exc
        self.watch()

    def give_up(self, seconds: float) -> None:
        """End it: no byte has moved for so long."""
        self.reset_backend()
        if self._peer_end:
            self.finish(self._peer_end, PeerLeftError(self._peer_end))
            return
        error = SilenceError(self._waited_for, seconds)
        self.finish(str(error), error)

    @property
    def waits_for_answer(self) -> bool:
        """Tell whether the first byte of the answer is what everybody waits for."""
        return self._waited_for is Waited.ANSWER

    @property
    def _waited_for(self) -> Waited:
        if self._to_peer is not None:
            return Waited.READER
        # Bytes that wait for the backend were sent by the peer: it has done its part.
        if not self._gate.request_is_complete and self._to_backend is None:
            return Waited.BODY
        return Waited.REST if self._gate.answer_has_begun else Waited.ANSWER

    def hold_to(self, pace: Pace, seconds: float) -> None:
        """End it if the peer is too slow; `seconds` since the last look.

        What waits for the backend is none of the peer's time: a backend that does not read is not
        the peer's fault.
        """
        fault = ""
        if not self._gate.request_is_complete and self._to_backend is None:
            self._body_seconds += seconds
            fault = pace.fault_of_body(self._body_seconds, self._gate.body_bytes)
            error: Exception = HttpError(408, "request_timeout", f"the request's body: {fault}")
        if not fault and self._to_peer is not None:
            self._reader_seconds += seconds
            fault = pace.fault(self._reader_seconds, self._traffic.sent)
            error = PeerCutError(f"the peer reads too slowly: {fault}")
        if fault:
            self.reset_backend()
            self.finish(str(error), error)

    @property
    def _peer_has_left(self) -> bool:
        """Tell whether nobody waits for the answer, and nothing more of the request will come."""
        if self._peer_is_lost and (self._gate.request_is_complete or not self._gate.wants_bytes):
            return True
        return self._peer_has_ended

    def _settle(self) -> None:
        if self._peer_has_left:
            if self._has_arrived():
                self.reset_backend()
                self.finish(self._peer_end, PeerLeftError(self._peer_end))
            else:
                self.watch()
        elif self._gate.response_is_complete and self._to_peer is None:
            # It answered before it had read everything. On this connection it would take the
            # next request for the rest of this one.
            self._traffic.undelivered = self._to_backend is not None or self._backend_is_lost
            self.finish("answered")
        else:
            self.watch()

    def _break(self, error: BrokenError) -> None:
        self.reset_backend()
        if self._peer_has_left:
            error = BrokenError(self._peer_end, is_peers=True)
        self.finish(str(error), _who_broke(error))

    def _peer_is_ready(self, events: int) -> None:
        if events & WRITE and self._to_peer is not None:
            sent = self._send_to_peer(self._to_peer)
            self._to_peer = self._to_peer[sent:] or None
        if events & READ or self._peer_read_wants_write:
            self._read_peer()

    def _backend_is_ready(self, events: int) -> None:
        if events & WRITE and self._to_backend is not None:
            left = self._to_backend
            sent = self._send_to_backend(left)
            self._to_backend = None if self._backend_is_lost else left[sent:] or None
        if not events & READ:
            return
        if self._peer_has_left:
            # For nobody; but a backend that cannot write may not read either.
            if self._read_from_backend() == 0:
                raise BrokenError("backend: ended", is_peers=False)
        elif self._to_peer is None and not self._gate.response_is_complete:
            self._read_backend()

    def _read_peer(self) -> None:
        if self._to_backend is not None or self._peer_has_ended or not self._gate.wants_bytes:
            return
        # Of chunks little at a time: a buffer full of small ones would keep the others waiting.
        read = self._drain_peer(_CHUNKED_BYTES if self._gate.takes_chunks else len(BUFFER))
        if read is None:
            return
        count, ended = read
        if count:
            self._forward(memoryview(self._gate.receive(BUFFER[:count])))
            self._check_ahead()
        if ended:
            # Its end cancels the request, whatever it would still read; what came of the request
            # arrives before that.
            self._peer_has_ended, self._to_peer = True, None
            self._peer_end = self._peer_end or "peer: closed"

    def _check_ahead(self) -> None:
        """Cut a peer of whom no more can be read: it could not be seen to leave."""
        if not self._gate.wants_bytes:
            raise _AheadError("the peer sends too much ahead of its answer", is_peers=True)

    def _read_backend(self) -> None:
        count = self._read_from_backend()
        if count is None:
            return
        if not count and self._backend_is_lost:
            # What was broken has no end that could be taken for the answer's.
            raise BrokenError("backend: broke in the middle of the request", is_peers=False)
        answer = self._gate.answer(BUFFER[:count]) if count else self._gate.backend_ended()
        self._answer(memoryview(answer))

    def _forward(self, data: memoryview) -> None:
        """Send to the backend, and keep what does not fit."""
        if not data or self._backend_is_lost:
            return
        sent = self._send_to_backend(data)
        if sent < len(data):
            self._to_backend = memoryview(bytes(data[sent:]))

    def _answer(self, data: memoryview) -> None:
        """Send to the peer, and keep what does not fit."""
        sent = self._send_to_peer(data) if data else 0
        if sent < len(data):
            self._to_peer = memoryview(bytes(data[sent:]))

    def _lose_backend(self, exc: OSError) -> None:
        # It may have answered before it left, as a server does that refuses a body: what it said
        # is still to be read. What the peer goes on to send is for nobody.
        self._backend_is_lost = True
        self._to_backend = None

    @property
    def _hears_peer(self) -> bool:
        return self._gate.wants_bytes and not self._peer_has_ended

    @property
    def _hears_backend(self) -> bool:
        return True  # until the answer is complete, and then it is finished


class _AheadError(BrokenError):
    """The peer is there, and is not read any more."""


def _who_broke(error: BrokenError) -> Exception:
    if isinstance(error, _AheadError):
        return PeerCutError(str(error))
    return PeerLeftError(str(error)) if error.is_peers else ExchangeBrokenError(str(error))
