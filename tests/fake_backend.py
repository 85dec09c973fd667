"""A model server that echoes, and keeps count of what reached it.

Threads and blocking sockets: nothing in it is shared with the code under test.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path


class EchoBackend:
    """Sends back every byte; ends its side when the peer has ended its own."""

    def __init__(self, unix_path: Path | None = None) -> None:
        if unix_path is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(unix_path))
            self._listener.listen(1024)
            self.address = f"unix:{unix_path}"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.changed = threading.Condition()
        self.connections = 0
        self.open = 0
        self.received = 0
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening and drop every connection."""
        # shutdown() first: close() alone leaves accept() waiting in its thread.
        # macOS refuses shutdown() of a listening socket, and wakes accept() on close().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.changed:
            for sock in self._sockets:
                sock.close()

    def wait_until(self, open_connections: int, seconds: float = 10) -> None:
        """Wait until so many connections are open."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.open == open_connections, seconds), self.open

    def serve(self, sock: socket.socket) -> None:
        """Talk to one connection; a subclass speaks something else."""
        while data := sock.recv(65536):
            with self.changed:
                self.received += len(data)
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self.changed:
            self.connections += 1
            self.open += 1
            self._sockets.add(sock)
            self.changed.notify_all()
        try:
            self.serve(sock)
        except OSError:
            pass  # the other side dropped it, which is what many tests are about
        finally:
            sock.close()
            with self.changed:
                self.open -= 1
                self._sockets.discard(sock)
                self.changed.notify_all()
