"""A backend that answers and leaves during an upload is heard before the connection breaks."""

from __future__ import annotations

import contextlib
import socket
import ssl

from tests.client import receive_exactly
from tests.fake_backend import EchoBackend
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import dial, read_to_end

ANSWER = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"


class Refusing(EchoBackend):
    """Reads a little, answers, and closes on unread bytes: the kernel resets the connection."""

    def serve(self, sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(ANSWER)


def test_answer_reaches_the_peer(launch: Launch, traefik: ssl.SSLContext) -> None:
    backend = Refusing()
    daemon = launch(backend_address=backend.address)
    with dial(daemon.address, traefik) as tls:
        tls.settimeout(0.5)
        with contextlib.suppress(OSError):  # it stops taking bytes, sooner or later
            for _ in range(200):
                tls.sendall(b"x" * 65536)
        tls.settimeout(10)
        assert receive_exactly(tls, len(ANSWER)) == ANSWER
        assert not read_to_end(tls).clean, "an upload that was cut looks complete"
    assert daemon.wait_for("connection closed")["end"].startswith("backend: ")
    backend.close()
