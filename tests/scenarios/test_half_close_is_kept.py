"""Each side may end its own direction and go on reading, through the daemon as without it."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client import connect
from tests.fake_backend import EchoBackend
from tests.scenarios.backends import BLOCK, AnsweringAtTheEnd, EndingFirst, Witness
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import HalfCloser, read_to_end

QUESTION = hashlib.sha256(b"question").digest() * 65536  # 2 MiB: more than any buffer on the way

Make = Callable[[type[EchoBackend]], EchoBackend]


@pytest.fixture(params=["TCP", "Unix socket"])
def make(request: pytest.FixtureRequest, folder: Path) -> Iterator[Make]:
    """Make a backend, on a Unix socket or on loopback."""
    made: list[EchoBackend] = []

    def one(kind: type[EchoBackend]) -> EchoBackend:
        made.append(kind(folder / "backend.sock" if request.param == "Unix socket" else None))
        return made[-1]

    yield one
    for backend in made:
        backend.close()


def test_peer_ends_first_and_reads_the_answer(
    launch: Launch, traefik: ssl.SSLContext, make: Make
) -> None:
    daemon = launch(backend_address=make(AnsweringAtTheEnd).address)
    with HalfCloser(daemon.address, traefik) as peer:
        peer.sendall(QUESTION)
        peer.send_end()
        ended = read_to_end(peer)
    assert ended.clean
    assert ended.received == 32
    assert ended.digest == hashlib.sha256(hashlib.sha256(QUESTION).digest()).hexdigest()
    line = daemon.wait_for("connection closed", end="closed")
    assert (line["received"], line["sent"]) == (len(QUESTION), 32)


def test_backend_ends_first_and_hears_the_rest(
    launch: Launch, traefik: ssl.SSLContext, make: Make
) -> None:
    backend = make(EndingFirst)
    assert isinstance(backend, EndingFirst)
    daemon = launch(backend_address=backend.address)
    with HalfCloser(daemon.address, traefik) as peer:
        ended = read_to_end(peer)
        assert ended.clean
        assert ended.digest == hashlib.sha256(BLOCK).hexdigest()
        peer.sendall(QUESTION)
        peer.send_end()
        with backend.changed:
            assert backend.changed.wait_for(lambda: backend.heard, 20)
    assert backend.heard == [hashlib.sha256(QUESTION).hexdigest()]
    line = daemon.wait_for("connection closed", end="closed")
    assert (line["received"], line["sent"]) == (len(QUESTION), len(BLOCK))


def test_end_without_a_word_reaches_both_sides(
    launch: Launch, traefik: ssl.SSLContext, make: Make
) -> None:
    daemon = launch(backend_address=make(EchoBackend).address)
    with HalfCloser(daemon.address, traefik) as peer:
        peer.send_end()
        ended = read_to_end(peer)
    assert ended.clean
    assert ended.received == 0
    daemon.wait_for("connection closed", end="closed", received=0, sent=0)


def test_peer_that_announces_its_end_and_goes_ends_the_backends_work(
    launch: Launch, traefik: ssl.SSLContext
) -> None:
    # What a Go program does when it cancels a request: close_notify, and the socket is gone.
    backend = Witness()
    daemon = launch(backend_address=backend.address)
    with HalfCloser(daemon.address, traefik) as peer:
        peer.sendall(b"question")
        peer.send_end()
    # Which of the two depends on whether its close_notify is read before its reset.
    assert backend.wait_for_end() in ("end", "ConnectionResetError")
    backend.close()


@pytest.mark.parametrize(
    "reset", [pytest.param(False, id="TCP end"), pytest.param(True, id="TCP reset")]
)
def test_peer_that_vanishes_ends_the_backends_work(
    reset: bool, launch: Launch, traefik: ssl.SSLContext
) -> None:
    backend = Witness()
    daemon = launch(backend_address=backend.address)
    with connect(daemon.address, traefik) as tls:
        tls.sendall(b"half a question")
        backend.wait_until(open_connections=1)
        if reset:
            tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    line = daemon.wait_for("connection closed")
    assert line["end"].startswith("peer: ")
    backend.wait_for_end()
    backend.close()
