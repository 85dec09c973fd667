"""One peer, or whoever probes the port, takes nothing that others need."""

from __future__ import annotations

import re
import signal
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

from tests.ca import Authority
from tests.client import client_context, connect, receive_exactly
from tests.fake_backend import EchoBackend
from tests.http_client import request, running_site
from tests.scenarios.admin_visitor import AdminVisitor, admin_table
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import own_address, turned_away

RESET = b"\1\0\0\0\0\0\0\0"
LATER = 86400  # a deadline that no test lives to see
EVERYBODY = ("spiffe://example.org/*",)


def context_of(authority: Authority, folder: Path, path: str) -> ssl.SSLContext:
    return client_context(authority, authority.sign(authority.leaf(path)), folder)


def metrics(folder: Path) -> dict[str, float]:
    """The samples of the page, without the prefix."""
    text = AdminVisitor(folder).get("/metrics")[1].decode()
    found = re.findall(r"^spiffe_sidecar_(\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_peer_of_mode_stream_has_its_share_and_what_its_rule_says(
    launch: Launch, backend: EchoBackend, authority: Authority, folder: Path
) -> None:
    greedy, single, other = (context_of(authority, folder, f"/{name}") for name in "abc")
    rule = '\n[[allow]]\nname = "single"\npeers = ["spiffe://example.org/b"]\nconnections = 1\n'
    more = "[connections]\nmaximum = 8\nmaximum_per_peer = 3\n" + admin_table(folder)
    daemon = launch(peers=EVERYBODY, policy=rule, more=more)
    with ExitStack() as held:
        for context in (greedy, greedy, greedy, single):
            tls = held.enter_context(connect(daemon.address, context))
            tls.sendall(b"x")
            assert receive_exactly(tls, 1) == b"x"
        for context in (greedy, single):
            address, _ = turned_away(daemon.address, context)
            line = daemon.wait_for("peer refused", address=address)
            assert line["reason"] == "too many connections of this peer"
        with connect(daemon.address, other) as tls:
            tls.sendall(b"x")
            assert receive_exactly(tls, 1) == b"x"
            own = own_address(tls)
        daemon.wait_for("connection closed", address=own)
        assert backend.connections == 5
        seen = metrics(folder)
    assert seen['denials_total{reason="too_many_connections"}'] == 2
    assert seen["handshake_duration_seconds_count"] == 7
    assert seen["connection_duration_seconds_count"] == 1
    assert seen['connection_ends_total{reason="closed"}'] == 1


def test_connection_ends_by_age_and_backend_failures_of_mode_stream_are_counted(
    launch: Launch, traefik: ssl.SSLContext, folder: Path
) -> None:
    more = "[connections]\nmax_age_seconds = 0.2\n" + admin_table(folder)
    with socket.create_server(("127.0.0.1", 0)) as model:
        address = "{}:{}".format(*model.getsockname())
        daemon = launch(backend_address=address, more=more)
        with connect(daemon.address, traefik):
            daemon.wait_for("connection closed", end="cut: max_age_seconds")
    own, _ = turned_away(daemon.address, traefik)
    daemon.wait_for("backend unreachable", address=own)
    seen = metrics(folder)
    assert seen['connection_ends_total{reason="max_age"}'] == 1
    assert seen['backend_failures_total{reason="unreachable"}'] == 1


def test_probes_of_the_port_are_counted_and_are_no_refusals(
    launch: Launch, traefik: ssl.SSLContext, folder: Path
) -> None:
    daemon = launch(more=admin_table(folder))
    for number in range(12):
        with socket.create_connection(daemon.address, 20) as sock:
            if number % 2:  # HAProxy ends its checks so
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with socket.create_connection(daemon.address, 20) as sock:
        sock.sendall(b"\x16\x03")  # half a handshake is more than a probe
        own = own_address(sock)
    daemon.wait_for("peer refused", address=own)
    with connect(daemon.address, traefik) as tls:
        tls.sendall(b"x")
        assert receive_exactly(tls, 1) == b"x"
        seen = metrics(folder)
        while seen['handshakes_total{result="probe"}'] < 12:
            seen = metrics(folder)
    assert seen['handshakes_total{result="probe"}'] == 12
    assert seen['handshakes_total{result="left"}'] == 1
    assert [line["address"] for line in daemon.lines("peer refused")] == [own]


def test_what_has_sent_no_request_does_not_hold_up_the_drain(
    launch: Launch, traefik: ssl.SSLContext
) -> None:
    more = f"[timeouts]\nhandshake = {LATER}\nrequest_head = {LATER}\nidle = {LATER}\n"
    more += f"[connections]\ndrain_seconds = {LATER}\n"
    daemon = launch(mode="http", more=more)
    with (
        socket.create_connection(daemon.address, 20),
        socket.create_connection(daemon.address, 20) as half_a_hello,
        connect(daemon.address, traefik),
        connect(daemon.address, traefik) as half_a_head,
    ):
        half_a_hello.sendall(b"\x16\x03\x01\x02")
        half_a_head.sendall(b"GET / HTTP/1.1\r\nHost: m\r\n")
        turned_away(daemon.address, None)  # by now all of them are in
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
    assert not daemon.lines("cutting")


POLICY = """
endpoints = ["*"]
[[allow]]
name = "others"
peers = ["spiffe://example.org/others/*"]
endpoints = ["*"]
"""


def test_slow_bodies_of_one_peer_leave_a_slot_to_another(authority: Authority) -> None:
    more = "[limits]\nconcurrent_requests = 4\nqueue_seconds = 86400\n"
    with running_site(authority, policy=POLICY, more=more) as site, ExitStack() as held:
        greedy = [held.enter_context(site.dial("/others/greedy")) for _ in range(6)]
        for peer in greedy:
            peer.sendall(request("POST", "/held/x", "Content-Length: 100") + b"x")
        calls = [site.backend.next_call() for _ in range(3)]
        with site.dial("/others/b") as other:
            assert other.ask("GET", "/v1/models").status == 200
        assert site.backend.next_call().target == "/v1/models"
        for call in calls:
            call.close()


def test_full_sidecar_ends_an_idle_connection_of_the_peer_that_has_most(
    authority: Authority,
) -> None:
    more = "[connections]\nmaximum = 4\n"
    with running_site(authority, policy=POLICY, more=more) as site, ExitStack() as held:
        modest = held.enter_context(site.dial("/others/modest"))
        assert modest.ask("GET", "/v1/models").status == 200
        greedy = [held.enter_context(site.dial("/others/greedy")) for _ in range(3)]
        for peer in greedy[:2]:  # the third never asks
            assert peer.ask("GET", "/v1/models").status == 200
        with site.dial("/others/newcomer") as newcomer:
            assert newcomer.ask("GET", "/v1/models").status == 200
            assert greedy[0].rest() == (b"", True)
            assert modest.ask("GET", "/v1/models").status == 200
            assert greedy[1].ask("GET", "/v1/models").status == 200
