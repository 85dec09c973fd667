"""Both ends of a TLS connection over a real TCP socket.

Ours is `sidecar.adapters.tls`. The peer's is the standard library's OpenSSL, another copy than
ours, on memory: so it can send close_notify and read on, and nothing of it blocks.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import trio

from sidecar.adapters.tls import HandshakeError, ServerIdentity, TlsStream, handshake

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def tcp_ends(closing: ExitStack, family: int = socket.AF_INET) -> tuple[socket.socket, Wire]:
    """Two ends of a TCP connection: an accepted socket as the listener hands over, and a wire."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=socket.AddressFamily(family)) as listener:
        theirs = socket.create_connection(listener.getsockname()[:2])
        ours = closing.enter_context(listener.accept()[0])
    ours.setblocking(False)
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, Wire(closing.enter_context(theirs))


class Wire:
    """The peer's end of a TCP connection, awaited."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent = 0
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            count = await self._sock.send(left)
            self.sent += count
            left = left[count:]

    async def receive(self) -> bytes:
        """What is there; empty at the end."""
        return await self._sock.recv(65536)

    async def receive_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = await self._sock.recv(min(65536, count - len(data)))
            assert part, f"ended after {len(data)} of {count} bytes"
            data += part
        return bytes(data)

    async def receive_all(self) -> bytes:
        """Everything until the end."""
        data = bytearray()
        while part := await self.receive():
            data += part
        return bytes(data)

    def end(self) -> None:
        """End our direction with FIN."""
        self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Drop the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self) -> None:
        self._sock.close()


class Cut(Exception):
    """The connection ended without close_notify."""


class Peer:
    """A TLS client; one task may send while another receives."""

    def __init__(
        self, wire: Wire, context: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> None:
        self.wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, session=session)
        self._sending = trio.Lock()

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
            except ssl.SSLError:
                await self._flush()  # our alert
                raise
            else:
                await self._flush()
                return

    async def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self.tls.write(left[:16384]) :]
            await self._flush()

    async def receive(self, count: int = 65536) -> bytes:
        """Bytes, or empty at close_notify; `Cut` when the connection ends without one."""
        while True:
            try:
                data = self.tls.read(count)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLEOFError as exc:
                raise Cut from exc
            else:
                return data

    async def receive_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = await self.receive(min(65536, count - len(data)))
            assert part, f"ended after {len(data)} of {count} bytes"
            data += part
        return bytes(data)

    async def receive_all(self) -> bytes:
        """Everything until close_notify."""
        data = bytearray()
        while part := await self.receive():
            data += part
        return bytes(data)

    async def send_end(self) -> None:
        """Send close_notify; what the other side still sends can be read."""
        with suppress(ssl.SSLWantReadError):  # the other side's end, which we do not wait for
            self.tls.unwrap()
        await self._flush()

    async def _flush(self) -> None:
        if not self._outgoing.pending:
            return  # who only receives does not wait for who is stuck in sending
        async with self._sending:
            while self._outgoing.pending:
                await self.wire.send(self._outgoing.read())

    async def _feed(self) -> None:
        try:
            data = await self.wire.receive()
        except ConnectionError as exc:
            raise Cut from exc
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


@dataclass(frozen=True)
class Refused:
    """How a peer was refused: our reason and its claim, and what it saw, and when."""

    reason: str
    claimed: str
    alert: str
    seen_at: str
    hint: str | None = None


async def admit(ours: socket.socket, identity: ServerIdentity, peer: Peer) -> TlsStream:
    """Take a peer through the handshake; it must succeed."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.handshake)
        return await handshake(ours, identity, 20)
    raise AssertionError


async def refuse(
    ours: socket.socket, identity: ServerIdentity, peer: Peer, seconds: float = 20
) -> Refused:
    """Take a peer into the handshake; it must be refused."""
    seen: list[str] = []

    async def attempt() -> None:
        stage = "handshake"
        try:
            await peer.handshake()
            stage = "read"
            await peer.send(REQUEST)
            seen[:] = [repr(await peer.receive()), stage]
        except ssl.SSLError as exc:
            seen[:] = [exc.reason or str(exc), stage]
        except (Cut, ConnectionError) as exc:
            seen[:] = [type(exc).__name__, stage]
        peer.wire.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        try:
            stream = await handshake(ours, identity, seconds)
        except HandshakeError as exc:
            error = exc
        else:
            raise AssertionError(f"admitted: {stream.peer}")
        await farewell(ours)
    return Refused(error.message, error.claimed, seen[0], seen[1], error.hint)


async def farewell(sock: socket.socket) -> None:
    """End the connection as its owner does: closing with unread bytes would reset it."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while True:
            await trio.lowlevel.wait_readable(sock)
            if not sock.recv(65536):
                break
    sock.close()
