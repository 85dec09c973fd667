"""The lingering close of a peer's connection: read, and drop, until the peer has stopped.

A socket that is closed with unread bytes, or while the other side goes on sending, is reset by the
kernel, and a reset takes with it what was sent before: the last bytes of an answer, or a refusal.
Specification: RFC 9112 (HTTP/1.1) 9.6 (Tear-down).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto

import trio

# A lingering close ends when the peer ends, after so many bytes, after so long, and when the peer
# has sent nothing for so long. Whoever reads our answer only after its whole upload has that time.
_LINGER_BYTES = 256 * 1024 * 1024
_LINGER_SECONDS = 30.0
_LINGER_SILENCE_SECONDS = 5.0
_LINGER_SECONDS_IN_DRAIN, _LINGER_SILENCE_IN_DRAIN = 1.0, 0.2


class Ending(Enum):
    """How our side of a peer's connection is to end."""

    CLOSED = auto()  # both sides have ended
    COMPLETE = auto()  # we have said all: close_notify, and a lingering close
    TRUNCATED = auto()  # what we said is not all: a lingering close without close_notify


class Lingering:
    """The lingering closes: in places of their own, so that they keep no newcomer out.

    When more than `maximum` are under way the oldest is ended: it has had most of its time.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._scopes: dict[trio.CancelScope, bool] = {}  # whether our end is sent
        self._seconds, self._silence = _LINGER_SECONDS, _LINGER_SILENCE_SECONDS

    def hurry(self) -> None:
        """Shorten those under way and those to come: the daemon is about to end."""
        self._seconds, self._silence = _LINGER_SECONDS_IN_DRAIN, _LINGER_SILENCE_IN_DRAIN
        soon = trio.current_time() + self._seconds
        for scope in (scope for scope, is_sent in self._scopes.items() if is_sent):
            scope.deadline = min(scope.deadline, soon)

    async def close(self, sock: socket.socket, send_end: Callable[[], bool] = lambda: True) -> None:
        """End our direction, then read and drop until the peer has ended its own.

        `send_end` sends close_notify, and returns False while the socket is full; waiting for room
        takes a place as well, so that peers that do not read cannot gather without end.
        """
        while len(self._scopes) >= self._maximum:
            oldest = next(iter(self._scopes))
            del self._scopes[oldest]
            oldest.cancel()
        with trio.move_on_after(_LINGER_SECONDS) as scope:
            self._scopes[scope] = False
            try:
                with suppress(OSError):  # it is gone already
                    while not send_end():
                        await trio.lowlevel.wait_writable(sock)
                    self._scopes[scope] = True
                    scope.deadline = trio.current_time() + self._seconds
                    await self._until_it_ends(sock)
            finally:
                self._scopes.pop(scope, None)

    async def _until_it_ends(self, sock: socket.socket) -> None:
        left = _LINGER_BYTES
        sock.shutdown(socket.SHUT_WR)
        while left > 0:
            with trio.move_on_after(self._silence) as silence:
                await trio.lowlevel.wait_readable(sock)
            if silence.cancelled_caught:
                return
            count = len(sock.recv(65536))
            if not count:
                return
            left -= count
