"""Our end of a connection to a server: TLS in memory, and the socket beside it.

Unlike `TlsStream`, which is made for speed, this one is made to lose nothing of what a server
says: OpenSSL reads no more once a write of its own has failed, and whoever refuses us mostly
hangs up while we still send. Here it never sees the socket, so an alert, or the answer to half of
a request, is read all the same. One task uses it; each wait has the time of silence.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable

import trio
from OpenSSL import SSL

from sidecar.adapters.tls.stream import RECORD_BYTES, openssl_reason

_MOST_AT_ONCE = 4 * RECORD_BYTES
_FIRST_BYTES = 512
# An answer of this size to half of a request is one, and no word in between.
_MOST_AHEAD = 1024 * 1024


class EndedError(Exception):
    """The connection ended; `announced` by close_notify, or by TCP alone, or by a TLS alert."""

    def __init__(self, reason: str, *, announced: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.announced = announced


class ClientStream:
    """One connection; waits raise `trio.TooSlowError` when nothing moves for `silence_seconds`."""

    def __init__(self, context: SSL.Context, sock: socket.socket) -> None:
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        self.silence_seconds = math.inf
        self.sent = 0
        self.first = b""  # that the server ever said, TLS or not
        self._sock = sock
        self._outgoing = memoryview(b"")
        self._sends = True
        self._ahead = b""
        self._broke = ""
        self._end: EndedError | None = None

    async def send(self, data: bytes) -> None:
        """Send, as long as the server takes it or has not answered.

        That it does not take all is no error if it has said why: that is still to be read.
        """
        view = memoryview(data)
        while self.sent < len(data) and self._sends:
            try:
                self.sent += self.tls.send(view[self.sent : self.sent + RECORD_BYTES])
            except SSL.Error:
                return  # it has ended; `receive` tells how
            await self.flush(listens=True)

    async def receive(self) -> bytes:
        """Give the next bytes, or raise `EndedError`."""
        while True:
            data, self._ahead = self._ahead or self._read(), b""
            if data:
                return data
            await self.flush()
            await self.fill()

    def close(self) -> None:
        """Say good-bye, if there is room for it."""
        if self._sends:
            try:
                self.tls.shutdown()
                self._sock.send(self._taken())
            except (SSL.Error, OSError):
                return  # nobody is there to hear it

    async def flush(self, *, listens: bool = False) -> None:
        """Send what TLS wants sent; who `listens` hears meanwhile what the server says."""
        self._outgoing = memoryview(bytes(self._outgoing) + self._taken())
        while self._outgoing and self._sends:
            try:
                self._outgoing = self._outgoing[self._sock.send(self._outgoing) :]
            except BlockingIOError:
                await self._until_it_moves()
                if listens:
                    self._listen()
            except OSError as exc:
                self._broke, self._sends = exc.strerror or str(exc), False

    async def fill(self) -> None:
        """Wait for the next bytes of the server's, or its end."""
        with trio.fail_after(self.silence_seconds):
            await trio.lowlevel.wait_readable(self._sock)
        self._take_in()

    def _take_in(self) -> None:
        try:
            data = self._sock.recv(_MOST_AT_ONCE)
        except BlockingIOError:
            return
        except OSError as exc:
            self._broke, data = exc.strerror or str(exc), b""
        self.first = self.first or data[:_FIRST_BYTES]
        if data:
            self.tls.bio_write(data)
        else:
            self.tls.bio_shutdown()

    async def _until_it_moves(self) -> None:
        try:
            with trio.fail_after(self.silence_seconds):
                await _until_readable_or_writable(self._sock)
        except trio.TooSlowError:
            if not self._ahead:
                raise
            self._sends = False  # it has answered, and wants no more

    def _listen(self) -> None:
        """Take what the server says before all is sent, which may be why it takes no more."""
        self._take_in()
        try:
            self._ahead += self._read()
        except EndedError:
            self._sends = False
        if len(self._ahead) > _MOST_AHEAD:
            self._sends = False

    def _read(self) -> bytes:
        """Give what is there, or raise `EndedError`; an end that comes with bytes comes later."""
        data = bytearray()
        while self._end is None and len(data) < _MOST_AT_ONCE:
            try:
                data += self.tls.recv(RECORD_BYTES)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                self._end = EndedError("it said good-bye (close_notify)", announced=True)
            except SSL.Error as exc:
                self._end = EndedError(self.reason(exc), announced=False)
        if not data and self._end is not None:
            raise self._end
        return bytes(data)

    def reason(self, exc: SSL.Error) -> str:
        """Give why TLS ended, as a person would say it."""
        return openssl_reason(exc, self._broke or "it ended without a word")

    def _taken(self) -> bytes:
        """Take what TLS wants sent out of its memory."""
        data = bytearray()
        while True:
            try:
                data += self.tls.bio_read(_MOST_AT_ONCE)
            except SSL.WantReadError:
                return bytes(data)


async def _until_readable_or_writable(sock: socket.socket) -> None:
    async with trio.open_nursery() as nursery:

        async def until(wait: Callable[[socket.socket], Awaitable[None]]) -> None:
            await wait(sock)
            nursery.cancel_scope.cancel()

        nursery.start_soon(until, trio.lowlevel.wait_readable)
        nursery.start_soon(until, trio.lowlevel.wait_writable)
