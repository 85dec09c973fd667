"""A flood of refused peers: the log stays small, counts them all, and still shows the others."""

from __future__ import annotations

import signal
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.client import client_context, connect, receive_exactly, refusal
from tests.daemon import Daemon
from tests.fake_backend import EchoBackend
from tests.log_lines import left_out
from tests.scenarios.admin_visitor import AdminVisitor, admin_table
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import free_port

RATE = 2
PLAIN = 300  # peers that speak no TLS: the cheapest flood there is
FOREIGN = 50  # peers with an SVID of a trust domain that is not trusted
ANOTHER = "127.0.0.2"


def _refused_plainly(address: tuple[str, int], source: str = "127.0.0.1") -> None:
    """Be refused, and wait until the daemon is through with it: by then the line is written."""
    with socket.create_connection(address, 20, (source, 0)) as sock, suppress(ConnectionError):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: models\r\n\r\n")
        while sock.recv(4096):
            pass


def _counted(daemon: Daemon, event: str) -> tuple[int, int]:
    """How many lines of refusals the log shows, and how many it says that it leaves out."""
    return len(daemon.lines(event)), left_out(daemon.lines("lines left out"), event)


def test_flood_makes_few_lines_and_every_refusal_counts(
    launch: Launch,
    backend: EchoBackend,
    authority: Authority,
    foreign: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
) -> None:
    daemon = launch(refusals_per_second=RATE)
    address = daemon.address
    stranger = client_context(authority, foreign.sign(foreign.leaf()), folder)
    begun = time.monotonic()
    for _ in range(PLAIN):
        _refused_plainly(address)
    for _ in range(FOREIGN):
        refusal(address, stranger)
    seconds = time.monotonic() - begun
    with connect(address, traefik) as tls:  # whoever is welcome gets in, and gets its line
        tls.sendall(b"hello")
        assert receive_exactly(tls, 5) == b"hello"
    daemon.wait_for("connection closed")
    assert _ended(daemon) == 0
    written, left_out = _counted(daemon, "peer refused")
    assert written + left_out == PLAIN + FOREIGN
    # The one address has half of the rate, and ten seconds of that at once.
    assert 0 < written <= RATE / 2 * (10 + seconds) + 1
    assert backend.connections == 1


def test_refusal_of_another_address_is_seen_through_the_flood(launch: Launch) -> None:
    daemon = launch(refusals_per_second=RATE)
    address = daemon.address
    try:
        socket.create_server((ANOTHER, 0)).close()
    except OSError:
        pytest.skip(f"this host has no address {ANOTHER}")
    for _ in range(PLAIN):
        _refused_plainly(address)
    _refused_plainly(address, ANOTHER)
    assert _ended(daemon) == 0
    hosts = {line["address"].partition(":")[0] for line in daemon.lines("peer refused")}
    assert hosts == {"127.0.0.1", ANOTHER}
    written, left_out = _counted(daemon, "peer refused")
    assert written + left_out == PLAIN + 1


def _ended(daemon: Daemon) -> int:
    """End it by one signal: a second one, right at the end, takes the last lines along."""
    daemon.process.send_signal(signal.SIGTERM)
    return daemon.wait()


def test_refused_requests_are_counted_like_peers(
    launch: Launch, authority: Authority, folder: Path
) -> None:
    """A peer that is known and not admitted is refused later, in HTTP, and floods as well."""
    daemon = launch(refusals_per_second=RATE, mode="http")
    issued = authority.sign(authority.leaf("/workload/stranger"))
    context = client_context(authority, issued, folder)
    for _ in range(50):
        with connect(daemon.address, context) as tls, suppress(ConnectionError, ssl.SSLError):
            tls.sendall(b"GET /v1/models HTTP/1.1\r\nHost: models\r\nConnection: close\r\n\r\n")
            while tls.recv(65536):
                pass
    assert _ended(daemon) == 0
    written, left_out = _counted(daemon, "request")
    assert left_out > 0
    assert written + left_out == 50


@pytest.mark.parametrize("mode", ["http", "stream"])
def test_failures_of_the_backend_make_few_lines_and_are_all_counted(
    mode: str, launch: Launch, traefik: ssl.SSLContext, folder: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    more = admin_table(folder)
    daemon = launch(
        refusals_per_second=RATE,
        mode=mode,
        backend_address=address,
        policy='endpoints = ["*"]\n' if mode == "http" else "",
        more=more,
    )
    begun, count = time.monotonic(), 60
    for _ in range(count):
        with connect(daemon.address, traefik) as tls, suppress(ConnectionError, ssl.SSLError):
            tls.sendall(b"GET /v1/models HTTP/1.1\r\nHost: models\r\nConnection: close\r\n\r\n")
            while tls.recv(65536):
                pass
    seconds = time.monotonic() - begun
    page = AdminVisitor(folder).get("/metrics")[1].decode()
    assert f'spiffe_sidecar_backend_failures_total{{reason="unreachable"}} {count}.0' in page
    assert _ended(daemon) == 0
    written, left_out = _counted(daemon, "request" if mode == "http" else "backend unreachable")
    assert written + left_out == count
    assert 0 < written <= RATE / 2 * (10 + seconds) + 1
