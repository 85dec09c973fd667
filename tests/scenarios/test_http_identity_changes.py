"""Identities change while connections are open: who may no longer speak is told so and let go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.ca import Authority
from tests.client import client_context, connect, server_serial
from tests.conftest import TRAEFIK
from tests.http_client import Answer, HttpPeer, Site, new_id, request, running_site

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
        running.sendall(request("GET", "/held/long"))
        call = site.backend.next_call()
        call.begin_stream()
        running.until(b"\r\n\r\n")
        site.agent.send(authority.svid(not_after=timedelta(seconds=3)), authority.bundle)
        site.daemon.wait_for("identity rotated")
        site.daemon.wait_for("state changed", state="expired", serving=False)
        refused = old.ask("POST", "/v1/chat/completions", body=b"{}")
        assert int(refused.get("retry-after") or 0) >= 1
        assert refused.json()["error"]["code"] == "no_identity"
        assert is_let_go(old, refused, 503)
        assert site.backend.untaken() == []
        call.event("running answers go on")
        assert running.until(b"\n\n\r\n").endswith(b"data: running answers go on\n\n\r\n")
        site.agent.send(authority.svid(), authority.bundle)
        site.daemon.wait_for("state changed", state="ready", serving=True)
        with site.dial() as again:
            assert again.ask("GET", "/v1/models").status == 200
        call.close()


# The peer's SVID.


def test_peer_whose_svid_expires_is_refused_from_its_next_request_on(
    site: Site, authority: Authority
) -> None:
    leaf = replace(authority.leaf(TRAEFIK), not_after=timedelta(seconds=3))
    issued = authority.sign(leaf)
    expires = issued.chain[0].not_valid_after_utc
    context = client_context(authority, issued, site.folder)
    deadline = time.monotonic() + 20
    with (
        HttpPeer(site.daemon.address, context) as peer,
        HttpPeer(site.daemon.address, context) as running,
    ):
        running.sendall(request("GET", "/held/long"))
        call = site.backend.next_call()
        call.begin_stream()
        running.until(b"\r\n\r\n")
        answer = peer.ask("GET", "/v1/models")
        assert answer.status == 200
        while answer.status == 200:
            assert time.monotonic() < deadline, "an expired SVID is good enough"
            assert not call.released.wait(0.05)
            begun = datetime.now(UTC)
            request_id = new_id()
            answer = peer.ask("POST", "/v1/chat", f"X-Request-Id: {request_id}", body=b"{}")
            assert answer.status == (403 if begun >= expires else answer.status)
        assert datetime.now(UTC) >= expires
        assert answer.json()["error"]["code"] == "svid_expired"
        assert is_let_go(peer, answer, 403)
        line = site.line(request_id)
        assert (line["decision"], line["status"], line["received"]) == ("refused", 403, 0)
        call.event("more")
        assert running.until(b"\n\n\r\n").endswith(b"data: more\n\n\r\n")
        call.end_stream()
        call.release()
        assert running.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        assert running.ask("GET", "/v1/models").status == 403


def test_peer_of_a_trust_domain_that_is_no_longer_federated_is_refused(
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
        refused = peer.ask("GET", "/v1/models")
        assert refused.json()["error"]["code"] == "svid_not_trusted"
        assert is_let_go(peer, refused, 403)
        assert site.backend.untaken() == []
        assert is_let_go(ours, ours.ask("GET", "/v1/models"), 200)


def test_peer_whose_authority_has_left_the_bundle_is_refused(authority: Authority) -> None:
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
        request_id = new_id()
        refused = peer.ask("GET", "/v1/models", f"X-Request-Id: {request_id}")
        assert refused.json()["error"]["code"] == "svid_not_trusted"
        assert is_let_go(peer, refused, 403)
        line = site.line(request_id)
        assert (line["decision"], line["status"]) == ("refused", 403)
        assert "not proven by the trust bundle of example.org" in line["reason"]
        assert site.backend.untaken() == []
        call.event("running answers go on")
        assert running.until(b"\n\n\r\n").endswith(b"data: running answers go on\n\n\r\n")
        call.close()
