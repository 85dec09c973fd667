"""Mode `stream`: bytes both ways until both sides have ended; half-close is kept both ways.

Never looks into what it moves.
"""

from __future__ import annotations

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


class Stream(Pair):
    """One connection of mode `stream`, and its ends.

    Both sides have ended: "closed". The peer has ended without close_notify, or cannot be sent to:
    what it sent arrives, what the backend had sent is passed on, then the backend sees a reset.
    The backend was reset: what it had sent is passed on, and no close_notify follows.
    """

    __slots__ = (
        "_backend_is_broken",
        "_backend_is_quiet",
        "_half_closed",
        "_received_end",
        "_sent_end",
    )

    def __init__(
        self, turn: Turn, peer: PeerStream, backend: socket.socket, traffic: Traffic
    ) -> None:
        super().__init__(turn, peer, backend, traffic)
        self._received_end = self._half_closed = self._sent_end = False
        self._backend_is_quiet = False  # whether nothing was there when it was last read
        self._backend_is_broken = ""

    def give_up(self, seconds: float) -> None:
        """End it: no byte has moved for so long."""
        # What was cut short must not look complete: RST, and no close_notify.
        self.reset_backend()
        self.finish(f"no byte for {seconds:g} s")

    def _settle(self) -> None:
        if self._peer_end and self._received_end:
            self._settle_last_bytes()
        elif self._half_closed and self._sent_end:
            self.finish("closed")
        else:
            self.watch()

    def _settle_last_bytes(self) -> None:
        """End it when what both sides had sent has been passed on."""
        if self._to_backend is None and self._to_peer is None and not self._sent_end:
            self._read_backend()
        if self._to_peer is not None or not self._has_arrived():
            self.watch()
        elif self._sent_end or self._backend_is_quiet or self._peer_is_lost:
            if self._peer_is_truncated:
                self.reset_backend()
            self.finish(self._peer_end)
        else:
            self._look_again()
            self.watch()

    def _break(self, error: BrokenError) -> None:
        self.reset_backend()
        self.finish(self._peer_end or str(error))

    def _peer_is_ready(self, events: int) -> None:
        if events & WRITE and self._to_peer is not None:
            self._flush_to_peer()
        if events & READ or self._peer_read_wants_write:
            self._read_peer()

    def _backend_is_ready(self, events: int) -> None:
        if events & WRITE and self._to_backend is not None:
            sent = self._send_to_backend(self._to_backend)
            self._to_backend = self._to_backend[sent:] or None
            self._end_backend_if_due()
        if events & READ and self._to_peer is None and not self._sent_end:
            self._read_backend()

    def _read_peer(self) -> None:
        if self._to_backend is not None or self._received_end:
            return
        read = self._drain_peer()
        if read is None:
            return
        count, self._received_end = read
        sent = self._send_to_backend(BUFFER[:count]) if count else 0
        if sent < count:
            self._to_backend = memoryview(bytes(BUFFER[sent:count]))
        self._end_backend_if_due()

    def _read_backend(self) -> None:
        count = self._read_from_backend()
        self._backend_is_quiet = count is None
        if count is None:
            return
        if not count and self._backend_is_broken:
            # Its last words are delivered; they must not look like a complete answer.
            raise BrokenError(self._backend_is_broken, is_peers=False)
        self._to_peer = BUFFER[:count]
        self._flush_to_peer()
        if self._to_peer is not None:
            self._to_peer = memoryview(bytes(self._to_peer))

    def _flush_to_peer(self) -> None:
        assert self._to_peer is not None
        if self._to_peer:
            sent = self._send_to_peer(self._to_peer)
            self._to_peer = self._to_peer[sent:] or None
        elif self._end_peer():
            self._to_peer, self._sent_end = None, True

    def _end_backend_if_due(self) -> None:
        """Half-close the backend's side once all that the peer sent is delivered."""
        if self._half_closed or not self._received_end or self._to_backend is not None:
            return
        if self._peer_is_truncated:
            return  # a FIN would say that this was all
        try:
            self._backend.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._lose_backend(exc)
        self._half_closed = True

    def _lose_backend(self, exc: OSError) -> None:
        # It may have answered before it left, as a server does that takes no such request: what
        # it said is still to be read.
        self._backend_is_broken = f"backend: {exc.strerror}"
        self._received_end = self._half_closed = True

    @property
    def _hears_peer(self) -> bool:
        return not self._received_end

    @property
    def _hears_backend(self) -> bool:
        return not self._sent_end
