"""Identities change while connections are open: who may no longer speak is let go."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import h11
import pytest

from tests.ca import Authority
from tests.client import client_context, connect, server_serial
from tests.conftest import TRAEFIK
from tests.http_client import CUTS, Answer, HttpPeer, Site, request, running_site

FOREIGNER = "spiffe://other.org/workload/traefik"
POLICY = f"""
endpoints = ["GET /v1/{{rest...}}", "POST /v1/{{rest...}}", "GET /held/{{rest...}}"]
[[allow]]
name = "federated"
peers = ["{FOREIGNER}"]
endpoints = ["*"]
"""


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    more = 'level = "debug"\n'
    with running_site(authority, policy=POLICY, more=more) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """One site for all that leaves it with a good identity."""
    running.backend.forget()
    return running


@pytest.fixture
def peer(site: Site) -> Iterator[HttpPeer]:
    with site.dial() as peer:
        yield peer


def rotate(site: Site) -> str:
    """Give the sidecar a new SVID of its authority; gives its serial."""
    svid = site.authority.svid()
    site.agent.send(svid, site.authority.bundle)
    site.daemon.wait_for("identity rotated", serial=svid.serial)
    return svid.serial


def is_let_go(peer: HttpPeer, answer: Answer, status: int) -> bool:
    """Tell whether this answer is the connection's last, is whole and says so."""
    assert (answer.status, answer.values("connection")) == (status, ["close"])
    return peer.rest() == (b"", True)


def is_refused(site: Site, context: ssl.SSLContext) -> bool:
    """Tell whether a new connection gets no answer at all."""
    try:
        with connect(site.daemon.address, context) as tls:
            tls.sendall(request("GET", "/v1/models"))
            return tls.recv(1) == b""
    except CUTS:
        return True


# Our own SVID.


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        pytest.param("GET", "/v1/models", 200, id="an answer"),
        pytest.param("HEAD", "/v1/models", 200, id="an answer to HEAD"),
        pytest.param("GET", "/denied", 403, id="a refusal"),
        pytest.param("GET", "/health", 200, id="our health"),
    ],
)
def test_connection_that_was_idle_during_a_rotation_is_told_to_dial_again(
    method: str, target: str, status: int, site: Site, peer: HttpPeer
) -> None:
    assert peer.ask(method, target).get("connection") is None
    serial = rotate(site)
    assert is_let_go(peer, peer.ask(method, target), status)
    with connect(site.daemon.address, site.context()) as tls:
        assert server_serial(tls) == serial
    with site.dial() as again:
        for _ in range(2):
            assert again.ask(method, target).get("connection") is None


def test_answer_that_runs_during_a_rotation_is_not_cut(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("GET", "/held/long"))
    call = site.backend.next_call()
    call.begin_stream()
    peer.until(b"\r\n\r\n")
    for number in range(3):
        rotate(site)
        call.event(f"{number}")
        assert peer.until(b"\n\n\r\n").endswith(b"data: %d\n\n\r\n" % number)
    call.end_stream()
    call.release()
    assert peer.until(b"0\r\n\r\n") == b"0\r\n\r\n"
    assert is_let_go(peer, peer.ask("GET", "/v1/models"), 200)


def test_pipelined_request_behind_the_last_answer_is_not_served(site: Site, peer: HttpPeer) -> None:
    rotate(site)
    peer.sendall(request("GET", "/v1/first") + request("POST", "/v1/second"))
    assert is_let_go(peer, peer.answer(), 200)
    assert site.backend.untaken() == ["GET /v1/first"]


def test_identity_that_is_merely_confirmed_ends_no_connection(site: Site) -> None:
    svid = site.authority.svid()
    site.agent.send(svid, site.authority.bundle)
    site.daemon.wait_for("identity rotated", serial=svid.serial)
    with site.dial() as new:
        assert new.ask("GET", "/v1/models").status == 200
        site.agent.send(svid, site.authority.bundle)
        site.daemon.wait_for("identity confirmed", serial=svid.serial)
        assert new.ask("GET", "/v1/models").get("connection") is None


def test_without_an_identity_of_our_own_nothing_is_served(authority: Authority) -> None:
    with running_site(authority) as site, site.dial() as old, site.dial() as running:
        assert old.ask("GET", "/v1/models").status == 200
        site.backend.forget()
        running.sendall(request("GET", "/held/long"))
        call = site.backend.next_call()
        call.begin_stream()
        running.until(b"\r\n\r\n")
        site.agent.send(authority.svid(not_after=timedelta(seconds=3)), authority.bundle)
        site.daemon.wait_for("identity rotated")
        assert old.rest() == (b"", True)
        site.daemon.wait_for("state changed", state="expired", serving=False)
        assert is_refused(site, site.context())
        assert site.backend.untaken() == []
        call.event("running answers go on")
        assert running.until(b"\n\n\r\n").endswith(b"data: running answers go on\n\n\r\n")
        site.agent.send(authority.svid(), authority.bundle)
        site.daemon.wait_for("state changed", state="ready", serving=True)
        with site.dial() as again:
            assert again.ask("GET", "/v1/models").status == 200
        call.end_stream()
        call.release()
        assert running.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        assert running.rest() == (b"", True)


# The peer's SVID.


def test_peer_whose_svid_expires_gets_no_answer_from_then_on(
    site: Site, authority: Authority
) -> None:
    leaf = replace(authority.leaf(TRAEFIK), not_after=timedelta(seconds=3))
    issued = authority.sign(leaf)
    expires = issued.chain[0].not_valid_after_utc
    context = client_context(authority, issued, site.folder)
    with (
        HttpPeer(site.daemon.address, context) as peer,
        HttpPeer(site.daemon.address, context) as running,
    ):
        running.sendall(request("GET", "/held/long"))
        call = site.backend.next_call()
        call.begin_stream()
        running.until(b"\r\n\r\n")
        assert peer.ask("GET", "/v1/models").status == 200
        end = _ask_until_refused(peer, expires)
        assert datetime.now(UTC) >= expires
        # Its connection ends while it waits, and a request that comes in that moment is refused.
        assert end is None or end.json()["error"]["code"] == "svid_expired"
        assert is_refused(site, context)
        call.event("more")
        assert running.until(b"\n\n\r\n").endswith(b"data: more\n\n\r\n")
        call.end_stream()
        call.release()
        assert running.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        assert running.rest() == (b"", True)


def _ask_until_refused(peer: HttpPeer, expires: datetime) -> Answer | None:
    """Ask for ever; gives the refusal, or None when the connection has ended."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        begun = datetime.now(UTC)
        try:
            answer = peer.ask("POST", "/v1/chat", body=b"{}")
        except (*CUTS, AssertionError, h11.RemoteProtocolError):
            return None
        if answer.status != 200:
            assert is_let_go(peer, answer, 403)
            return answer
        assert begun < expires, "an expired SVID is good enough"
    raise AssertionError("it is served on")


def test_peer_of_a_trust_domain_that_is_no_longer_federated_is_let_go(
    site: Site, authority: Authority, foreign: Authority
) -> None:
    svid = authority.svid()
    site.agent.send(svid, authority.bundle, [foreign.bundle])
    site.daemon.wait_for("identity rotated", serial=svid.serial)
    issued = foreign.sign(foreign.leaf("/workload/traefik"))
    context = client_context(authority, issued, site.folder)
    with HttpPeer(site.daemon.address, context) as peer, site.dial() as ours:
        for one in (peer, ours):
            assert one.ask("GET", "/v1/models").get("connection") is None
        site.backend.forget()
        rotate(site)
        assert peer.rest() == (b"", True)
        assert is_refused(site, context)
        assert site.backend.untaken() == []
        assert is_let_go(ours, ours.ask("GET", "/v1/models"), 200)


def test_peer_whose_authority_has_left_the_bundle_is_let_go_and_cut(authority: Authority) -> None:
    with running_site(authority) as site, site.dial() as peer, site.dial() as running:
        assert peer.ask("GET", "/v1/models").status == 200
        site.backend.forget()
        running.sendall(request("GET", "/held/long"))
        call = site.backend.next_call()
        call.begin_stream()
        running.until(b"\r\n\r\n")
        new = Authority("example.org")
        svid = new.svid()
        site.agent.send(svid, new.bundle)
        site.daemon.wait_for("identity rotated", serial=svid.serial)
        assert peer.rest() == (b"", True)
        assert running.rest() == (b"", False), "what was cut must not look complete"
        assert call.wait_gone() == "ConnectionResetError"
        line = site.daemon.wait_for("request", address=running.address, status=200)
        assert line["reason"].startswith("cut: not proven by the trust bundle of example.org")
        assert is_refused(site, site.context())
        assert site.backend.untaken() == []
