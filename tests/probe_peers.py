"""Servers that a probe may meet and that are no sidecar: each does one thing wrong.

Threads and blocking sockets, and the standard library's OpenSSL, another copy than ours.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.ca import Authority, Issued

Conduct = Callable[[socket.socket], None]
TlsConduct = Callable[[ssl.SSLSocket], None]
_SECONDS = 20


class OddServer:
    """A server whose connections all go the way of `conduct`; a context manager."""

    def __init__(self, conduct: Conduct, family: int = socket.AF_INET) -> None:
        self._conduct = conduct
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        self._listener = socket.create_server((host, 0), family=socket.AddressFamily(family))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> OddServer:
        return self

    def __exit__(self, *_fault: object) -> None:
        with suppress(OSError):  # macOS refuses shutdown of a listening socket
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(_SECONDS)
        # TLS takes the socket itself; through this one the connection can still be ended.
        with sock.dup() as handle:
            self._open.add(handle)
            with suppress(OSError), sock:  # an ssl.SSLError is an OSError
                self._conduct(sock)
            self._open.discard(handle)


# Without TLS.


def says(words: bytes) -> Conduct:
    """Say something and read on."""

    def conduct(sock: socket.socket) -> None:
        sock.sendall(words)
        read_on(sock)

    return conduct


def read_on(sock: socket.socket) -> None:
    """Read to the end, and say nothing."""
    while sock.recv(65536):
        pass


def hang_up(sock: socket.socket) -> None:
    """Take the greeting and end the connection."""
    sock.recv(65536)


def reset(sock: socket.socket) -> None:
    """Take the greeting and reset the connection."""
    sock.recv(65536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def plain_http(answer: bytes, *, to_garbage: bytes = b"") -> Conduct:
    """Answer a request in plain text; what is none gets `to_garbage`, or patience."""

    def conduct(sock: socket.socket) -> None:
        first = sock.recv(65536)
        if first.startswith(b"GET "):
            sock.sendall(answer)
        elif to_garbage:
            sock.sendall(to_garbage)
        else:
            read_on(sock)

    return conduct


# With TLS.


def server_context(
    issued: Issued, folder: Path, trusts: Authority | None, version: str = "1.3"
) -> ssl.SSLContext:
    """What a server presents; with `trusts` it asks for a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.write(folder, f"server-{id(issued)}"))
    wanted = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    context.minimum_version = context.maximum_version = wanted
    context.num_tickets = 0
    if trusts is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=trusts.ca.cert_pem.bytes().decode("ascii"))
    return context


def over_tls(context: ssl.SSLContext, conduct: TlsConduct) -> Conduct:
    """Make the handshake, and go on."""

    def whole(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            conduct(tls)

    return whole


def read_head(tls: ssl.SSLSocket) -> bytes:
    """Read up to the end of a head, and what came with it."""
    request = b""
    while b"\r\n\r\n" not in request:
        data = tls.recv(65536)
        if not data:
            raise ConnectionError("it ended")
        request += data
    return request


def answers(data: bytes, *, announced: bool = True) -> TlsConduct:
    """Answer a request with these bytes and end; `announced` by close_notify."""

    def conduct(tls: ssl.SSLSocket) -> None:
        read_head(tls)
        tls.sendall(data)
        if announced:
            tls.unwrap()

    return conduct
