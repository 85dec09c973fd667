"""A model server that is down, slow to start or dies: the peer can tell, and so can the log."""

from __future__ import annotations

import hashlib
import select
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

from tests.client import connect, receive_exactly
from tests.fake_backend import EchoBackend
from tests.scenarios.backends import BLOCK, Resetting
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import dial, free_port, read_to_end, turned_away


def test_reset_in_the_middle_of_an_answer_is_no_clean_end(
    launch: Launch, traefik: ssl.SSLContext
) -> None:
    backend = Resetting()
    daemon = launch(backend_address=backend.address)
    with dial(daemon.address, traefik) as tls:
        tls.sendall(b"question")
        assert receive_exactly(tls, len(BLOCK)) == BLOCK
        tls.sendall(b"read")
        ended = read_to_end(tls)
    assert not ended.clean, "half an answer looks like a whole one"
    assert ended.received == 0
    line = daemon.wait_for("connection closed", sent=len(BLOCK))
    assert line["end"] == "backend: Connection reset by peer"
    backend.close()


def test_answer_that_was_on_its_way_when_the_backend_died(
    launch: Launch, traefik: ssl.SSLContext
) -> None:
    backend = EchoBackend()
    daemon = launch(backend_address=backend.address)
    with dial(daemon.address, traefik) as tls:
        tls.sendall(BLOCK)
        echoed = hashlib.sha256(receive_exactly(tls, len(BLOCK))).hexdigest()
        assert echoed == hashlib.sha256(BLOCK).hexdigest()
    backend.close()


def test_backend_down_is_no_clean_end_and_a_warning(
    launch: Launch, traefik: ssl.SSLContext
) -> None:
    port = free_port()
    daemon = launch(backend_address=f"127.0.0.1:{port}")
    address, clean = turned_away(daemon.address, traefik)
    assert not clean
    line = daemon.wait_for("backend unreachable", address=address)
    assert line["level"] == "warning"
    assert line["peer"] == "spiffe://example.org/workload/traefik"
    assert line["reason"] == f"backend 127.0.0.1:{port} cannot be reached: Connection refused"
    assert "is the model server running" in line["hint"]


def test_backend_that_takes_no_connection_has_a_deadline(
    launch: Launch, traefik: ssl.SSLContext
) -> None:
    with ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        full = False
        while not full:  # until the kernel lets somebody wait
            caller = held.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
            full = not select.select([], [caller], [], 0.5)[1]
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        daemon = launch(backend_address=where, more="[timeouts]\nbackend_connect = 0.5")
        address, clean = turned_away(daemon.address, traefik)
        assert not clean
        line = daemon.wait_for("backend unreachable", address=address)
        assert line["reason"] == f"backend {where} did not answer within 0.5 s"


def test_backend_that_starts_later_is_found_by_the_next_connection(
    launch: Launch, traefik: ssl.SSLContext, folder: Path
) -> None:
    path = folder / "backend.sock"
    daemon = launch(backend_address=f"unix:{path}")
    address, clean = turned_away(daemon.address, traefik)
    assert not clean
    line = daemon.wait_for("backend unreachable", address=address)
    assert line["reason"].endswith("No such file or directory")
    backend = EchoBackend(path)
    with connect(daemon.address, traefik) as tls:
        tls.sendall(b"now")
        assert receive_exactly(tls, 3) == b"now"
    backend.close()


def test_backend_that_restarts_is_found_by_the_next_connection(
    launch: Launch, traefik: ssl.SSLContext, folder: Path
) -> None:
    path = folder / "backend.sock"
    backend = EchoBackend(path)
    daemon = launch(backend_address=backend.address)
    with connect(daemon.address, traefik) as tls:
        tls.sendall(b"old")
        assert receive_exactly(tls, 3) == b"old"
    backend.close()
    address, _ = turned_away(daemon.address, traefik)  # the socket's file is still there
    line = daemon.wait_for("backend unreachable", address=address)
    assert line["reason"].endswith("Connection refused")
    path.unlink()
    backend = EchoBackend(path)
    with connect(daemon.address, traefik) as tls:
        tls.sendall(b"new")
        assert receive_exactly(tls, 3) == b"new"
    backend.close()
