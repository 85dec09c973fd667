"""Model servers with one peculiarity each, on the echo backend's sockets and threads."""

from __future__ import annotations

import hashlib
import select
import socket
import struct
import threading
from pathlib import Path

from tests.fake_backend import EchoBackend

BLOCK = hashlib.sha256(b"block").digest() * 2048  # 64 KiB


class AnsweringAtTheEnd(EchoBackend):
    """Says nothing before the question has ended, then sends its digest and ends."""

    def serve(self, sock: socket.socket) -> None:
        digest = hashlib.sha256()
        while data := sock.recv(65536):
            digest.update(data)
        sock.sendall(digest.digest())
        sock.shutdown(socket.SHUT_WR)


class EndingFirst(EchoBackend):
    """Says all it has to say and ends its side, then listens until the peer ends too."""

    def __init__(self, unix_path: Path | None = None) -> None:
        self.heard: list[str] = []
        super().__init__(unix_path)

    def serve(self, sock: socket.socket) -> None:
        sock.sendall(BLOCK)
        sock.shutdown(socket.SHUT_WR)
        digest = hashlib.sha256()
        while data := sock.recv(65536):
            digest.update(data)
        with self.changed:
            self.heard.append(digest.hexdigest())
            self.changed.notify_all()


class Resetting(EchoBackend):
    """Dies in the middle of its answer: the half that was sent, then a reset."""

    def serve(self, sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(BLOCK)
        sock.recv(65536)  # the peer tells that it has read all that was sent
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Pushing(EchoBackend):
    """Sends `size` bytes on each connection as fast as it is allowed to, and ends."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.stalled_at = 0  # bytes
        self.stalled = threading.Event()
        super().__init__()

    def serve(self, sock: socket.socket) -> None:
        for pushed in range(0, self.size, len(BLOCK)):
            # A second without room: everything between here and the peer is full.
            if not select.select([], [sock], [], 1.0)[1]:
                self.stalled_at = pushed
                self.stalled.set()
            sock.sendall(BLOCK)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)


class Deaf(EchoBackend):
    """Reads nothing until it is told to, then says what it heard."""

    def __init__(self) -> None:
        self.listen = threading.Event()
        super().__init__()

    def serve(self, sock: socket.socket) -> None:
        self.listen.wait(60)
        digest = hashlib.sha256()
        while data := sock.recv(65536):
            digest.update(data)
        sock.sendall(digest.digest())
        sock.shutdown(socket.SHUT_WR)


class Witness(EchoBackend):
    """Keeps how each connection ended on its side: "end" or the error's name."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        super().__init__()

    def wait_for_end(self, seconds: float = 20) -> str:
        with self.changed:
            assert self.changed.wait_for(lambda: self.ends, seconds), "it goes on"
            return self.ends.pop(0)

    def serve(self, sock: socket.socket) -> None:
        end = "end"
        try:
            while sock.recv(65536):
                pass
        except OSError as exc:
            end = type(exc).__name__
        with self.changed:
            self.ends.append(end)
            self.changed.notify_all()


class HttpServer(EchoBackend):
    """Speaks HTTP/1.1 and understands nothing."""

    def serve(self, sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
