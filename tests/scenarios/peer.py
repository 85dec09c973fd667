"""A peer that looks closely: at how a connection ends, and at the address it came from.

`tests.client` is content with any end; here an end without close_notify is an error, as it is
to an HTTP client that reads an answer until the end.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """What came until the end, and whether the end was announced (close_notify)."""

    received: int
    digest: str
    clean: bool


def strict(context: ssl.SSLContext) -> ssl.SSLContext:
    """Some builds of Python tell OpenSSL 3 to take any end of TCP for an announced one."""
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


def dial(address: tuple[str, int], context: ssl.SSLContext, seconds: float = 20) -> ssl.SSLSocket:
    """Connect; an end that nobody announced raises when it is read."""
    sock = socket.create_connection(address, seconds)
    try:
        return strict(context).wrap_socket(sock, suppress_ragged_eofs=False)
    except BaseException:
        sock.close()
        raise


def read_to_end(tls: ssl.SSLSocket | HalfCloser) -> Ended:
    """Read until the connection ends, however it does."""
    received, digest = 0, hashlib.sha256()
    try:
        while data := tls.recv(65536):
            received += len(data)
            digest.update(data)
    except (ssl.SSLError, ConnectionError):
        return Ended(received, digest.hexdigest(), clean=False)
    return Ended(received, digest.hexdigest(), clean=True)


class HalfCloser:
    """A peer that can end its own side and read on.

    `SSLSocket.unwrap` cannot: it waits for the other side's end and refuses data before it. On
    memory it finds nothing to wait for, and the end goes out when we send what it wrote.
    """

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(address, 20)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = strict(context).wrap_bio(self._incoming, self._outgoing)
        self._until_done(self._tls.do_handshake)

    @property
    def alpn(self) -> str | None:
        """What was agreed on by ALPN."""
        return self._tls.selected_alpn_protocol()

    def __enter__(self) -> HalfCloser:
        return self

    def __exit__(self, *_fault: object) -> None:
        self.sock.close()

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def send_end(self) -> None:
        """Send close_notify."""
        with suppress(ssl.SSLWantReadError):  # the other side's end, if it is not here yet
            self._tls.unwrap()
        self._flush()

    def recv(self, count: int) -> bytes:
        try:
            return self._until_done(lambda: self._tls.read(count))
        except ssl.SSLZeroReturnError:
            return b""  # the announced end, as Python says it to a side that ended before

    def _until_done(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self.sock.recv(65536)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            finally:
                self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:  # nothing would be refused by a side that has ended
            self.sock.sendall(self._outgoing.read())


@contextmanager
def silent(address: tuple[str, int], count: int, first: bytes = b"") -> Iterator[list[str]]:
    """Open connections that send `first` and then nothing; gives their own addresses."""
    sockets = [socket.create_connection(address, 20) for _ in range(count)]
    try:
        for sock in sockets:
            sock.sendall(first)
        yield [own_address(sock) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def free_port() -> int:
    """A port on which nobody listens; the kernel does not give it out again at once."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def until_it_listens(port: int, seconds: float = 20) -> None:
    """Knock until somebody opens; a port that refuses offers nothing else to wait for."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), seconds).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "nobody listens"
        else:
            return


def own_address(sock: socket.socket) -> str:
    """This end of a connection, as the daemon logs it."""
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"


def turned_away(address: tuple[str, int], context: ssl.SSLContext | None) -> tuple[str, bool]:
    """Ask the model server something and get no byte of an answer, whatever else happens.

    Gives our address and whether the end was a clean one. Without a context: plain HTTP.
    """
    request = b"GET /api/tags HTTP/1.1\r\nHost: models\r\n\r\n"
    with socket.create_connection(address, 20) as sock:
        own = own_address(sock)
        try:
            if context is None:
                sock.sendall(request)
                # A TLS alert is no answer of the model server.
                assert sock.recv(5)[:1] in (b"", b"\x15")
                return own, False
            with strict(context).wrap_socket(sock, suppress_ragged_eofs=False) as tls:
                tls.sendall(request)
                assert tls.recv(1) == b"", "the daemon answered a peer that it had to refuse"
        except (ssl.SSLError, ConnectionError):
            return own, False
    return own, True
