"""Limits hold for those who take too much, and an honest peer gets in beside them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.client import client_context, connect, receive_exactly
from tests.daemon import Daemon
from tests.fake_backend import EchoBackend
from tests.scenarios.backends import Pushing
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import dial, own_address, read_to_end, silent, turned_away

RESET = struct.pack("ii", 1, 0)


def _talks(daemon: Daemon, context: ssl.SSLContext) -> None:
    with connect(daemon.address, context) as tls:
        tls.sendall(b"hello")
        assert receive_exactly(tls, 5) == b"hello"
        own = own_address(tls)
        tls.unwrap()
    daemon.wait_for("connection closed", address=own)


def test_one_connection_too_many_is_closed(
    launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    daemon = launch(more="[connections]\nmaximum = 2")
    with (
        connect(daemon.address, traefik) as first,
        connect(daemon.address, traefik) as second,
    ):
        backend.wait_until(open_connections=2)
        address, _ = turned_away(daemon.address, traefik)
        line = daemon.wait_for("peer refused", address=address)
        assert line["reason"] == "too many connections"
        assert line["peer"] == "spiffe://example.org/workload/traefik"
        assert backend.connections == 2
        for tls in (first, second):
            tls.sendall(b"alive")
            assert receive_exactly(tls, 5) == b"alive"
        first.unwrap()
        daemon.wait_for("connection closed")
        _talks(daemon, traefik)


def test_slot_of_a_peer_that_vanished_is_free_again(
    launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    daemon = launch(more="[connections]\nmaximum = 1")
    for count in range(1, 6):
        with connect(daemon.address, traefik) as tls:
            tls.sendall(b"x")
            assert receive_exactly(tls, 1) == b"x"
        daemon.wait_for("connection closed")
        assert backend.connections == count


@pytest.mark.parametrize(
    "first", [pytest.param(b"", id="silent"), pytest.param(b"\x16\x03\x01\x02", id="begun")]
)
def test_silent_connections_do_not_keep_an_honest_peer_out(
    first: bytes, launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    daemon = launch(more="[connections]\nmaximum_handshakes = 4")
    with silent(daemon.address, 20, first) as addresses:
        for address in addresses[:16]:
            line = daemon.wait_for("peer refused", address=address)
            assert line["reason"] == "too many handshakes, this was the oldest"
        _talks(daemon, traefik)
        assert backend.connections == 1


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"", id="silent"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", id="begun"),
    ],
)
def test_handshake_has_a_deadline(
    first: bytes, launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    daemon = launch(more="[timeouts]\nhandshake = 0.3")
    with socket.create_connection(daemon.address, 20) as sock:
        sock.sendall(first)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b"", "the end of it, and no word"
        line = daemon.wait_for("peer refused", address=own_address(sock), claimed="none")
    assert line["reason"] == "no TLS handshake within 0.3 s"
    _talks(daemon, traefik)
    assert backend.connections == 1


def test_handshake_that_drips_has_the_same_deadline(
    launch: Launch, traefik: ssl.SSLContext
) -> None:
    daemon = launch(more="[timeouts]\nhandshake = 0.5")
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        traefik.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    with socket.create_connection(daemon.address, 20) as sock:
        own = own_address(sock)
        sock.settimeout(0.05)
        with contextlib.suppress(ConnectionError):
            for byte in hello.read()[:-1]:
                sock.sendall(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    if not sock.recv(1):
                        break
            else:
                raise AssertionError("the daemon listened to all of it")
        line = daemon.wait_for("peer refused", address=own)
    assert line["reason"] == "no TLS handshake within 0.5 s"


def test_silence_between_bytes_ends_a_connection_and_talk_keeps_one(
    launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    daemon = launch(more="[timeouts]\nbetween_bytes = 1")
    with (
        dial(daemon.address, traefik) as talking,
        dial(daemon.address, traefik) as silence,
    ):
        silence.settimeout(0.2)
        for number in range(200):
            talking.sendall(b"%03d" % number)
            assert receive_exactly(talking, 3) == b"%03d" % number
            try:
                assert silence.recv(1) == b"", "nothing was asked"
            except TimeoutError:
                continue  # not yet; this is what paces the one that talks
            except (ssl.SSLError, ConnectionError):
                break
        else:
            raise AssertionError("the silent one was kept")
        line = daemon.wait_for("connection closed", address=own_address(silence))
        assert line["end"] == "no byte for 1 s"
        talking.sendall(b"last")
        assert receive_exactly(talking, 4) == b"last"
    backend.wait_until(open_connections=0)


def test_peer_that_stops_reading_ends_by_the_same_timeout(
    launch: Launch, traefik: ssl.SSLContext
) -> None:
    backend = Pushing(200 * 2**20)
    daemon = launch(backend_address=backend.address, more="[timeouts]\nbetween_bytes = 1")
    with dial(daemon.address, traefik) as tls:
        line = daemon.wait_for("connection closed", address=own_address(tls))
        assert line["end"] == "no byte for 1 s"
        ended = read_to_end(tls)
    assert not ended.clean, "an answer that was cut looks whole"
    assert ended.received < backend.size
    backend.wait_until(open_connections=0)
    backend.close()


class TalksOn(EchoBackend):
    """Sends without end and reads nothing: neither the request's body nor an end."""

    def serve(self, sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(b"x" * 65536)


@pytest.mark.parametrize("mode", ["stream", "http"])
def test_backend_that_only_talks_does_not_keep_a_peer_that_left(
    launch: Launch, traefik: ssl.SSLContext, mode: str
) -> None:
    backend = TalksOn()
    daemon = launch(
        backend_address=backend.address,
        mode=mode,
        policy='endpoints = ["*"]\n' if mode == "http" else "",
        more="[timeouts]\nbetween_bytes = 1",
    )
    with dial(daemon.address, traefik) as tls:
        own = own_address(tls)
        tls.sendall(b"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 99000000\r\n\r\n")
        assert receive_exactly(tls, 8) == b"HTTP/1.1"
        tls.settimeout(0.5)
        with pytest.raises((TimeoutError, ssl.SSLError)):  # what fits on the way is full
            tls.sendall(b"x" * 90_000_000)
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    event = "connection closed" if mode == "stream" else "request"
    line = daemon.wait_for(event, address=own)
    if mode == "http":
        assert line["outcome"] == "peer_left"
    backend.wait_until(open_connections=0)
    backend.close()


def test_refused_peers_leave_no_slot_taken(
    launch: Launch,
    backend: EchoBackend,
    authority: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
) -> None:
    daemon = launch(more="[connections]\nmaximum = 1\nmaximum_handshakes = 1")
    stranger = client_context(
        authority, authority.sign(authority.leaf("/workload/stranger")), folder
    )
    nobody = client_context(authority, None, folder)
    for context in (stranger, nobody, None, stranger, nobody, None):
        address, _ = turned_away(daemon.address, context)
        daemon.wait_for("peer refused", address=address)
    _talks(daemon, traefik)
    assert backend.connections == 1


def test_refused_stranger_that_lingers_does_not_keep_an_honest_peer_out(
    launch: Launch, authority: Authority, traefik: ssl.SSLContext, folder: Path
) -> None:
    daemon = launch(more="[connections]\nmaximum = 1")
    stranger = client_context(
        authority, authority.sign(authority.leaf("/workload/stranger")), folder
    )
    with dial(daemon.address, stranger) as tls:
        daemon.wait_for("peer refused", address=own_address(tls))
        _talks(daemon, traefik)


def test_refusal_is_one_line_however_many_come_after(
    launch: Launch, authority: Authority, traefik: ssl.SSLContext, folder: Path
) -> None:
    daemon = launch(more="[connections]\nmaximum_handshakes = 1")
    address = daemon.address
    with dial(address, client_context(authority, None, folder)) as nobody:
        own = own_address(nobody)
        daemon.wait_for("peer refused", address=own, reason="no certificate presented")
        _talks(daemon, traefik)
        _talks(daemon, traefik)
    assert len([line for line in daemon.lines("peer refused") if line["address"] == own]) == 1
