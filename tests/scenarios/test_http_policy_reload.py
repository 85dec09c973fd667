"""A changed policy decides the next request and what is running; a bad one changes nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import h11
import pytest

from tests.ca import Authority
from tests.http_client import CUTS, HttpPeer, Site, request, running_site
from tests.scenarios.peer import silent

TRAEFIK = "spiffe://example.org/workload/traefik"
POLICY = """
[[allow]]
name = "traefik"
peers = ["{peer}"]
endpoints = [{endpoints}]
{more}
"""


def policy(*endpoints: str, peer: str = TRAEFIK, more: str = "") -> str:
    quoted = ", ".join(f'"{one}"' for one in endpoints)
    return POLICY.format(peer=peer, endpoints=quoted, more=more)


ALL = policy("*")
NARROW = policy("GET /v1/narrow")
NOBODY_HERE = policy("*", peer="spiffe://example.org/workload/other")


class Policies:
    """The policy file of a site, in the hands of an operator."""

    def __init__(self, site: Site) -> None:
        self._daemon = site.daemon
        self.path = site.folder / "policy.toml"

    def rename_over(self, text: str | bytes) -> None:
        """As editors and configuration tools do it."""
        new = self.path.with_name("policy.new")
        new.write_bytes(text if isinstance(text, bytes) else text.encode())
        new.rename(self.path)

    def publish(self, text: str) -> None:
        """Put a policy in force."""
        if self.path.exists() and self.path.read_bytes() == text.encode():
            return
        self.rename_over(text)
        self._daemon.wait_for("policy loaded", asked_by="file")

    def refused(self) -> dict[str, Any]:
        return self._daemon.wait_for("policy refused, the old one stays")

    def hang_up(self) -> None:
        self._daemon.process.send_signal(signal.SIGHUP)


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority) as site:
        assert site.daemon.address  # the watch begins before it listens
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """One site for all; each test begins with a policy that allows everything."""
    Policies(running).publish(ALL)
    running.backend.forget()
    return running


@pytest.fixture
def policies(site: Site) -> Policies:
    return Policies(site)


@pytest.fixture
def peer(site: Site) -> Iterator[HttpPeer]:
    with site.dial() as peer:
        yield peer


def test_new_policy_decides_the_next_request_of_a_busy_connection(
    site: Site, policies: Policies, peer: HttpPeer
) -> None:
    begun = len(site.daemon.log)
    deadline = time.monotonic() + 60
    statuses: list[int] = []
    with ExitStack() as held:
        while len(statuses) < 1000 or 403 not in statuses:
            assert time.monotonic() < deadline, "the new policy never decided"
            if len(statuses) == 500:
                policies.rename_over(NARROW)
            try:
                statuses.append(peer.ask("GET", "/v1/x").status)
            except (*CUTS, AssertionError, h11.RemoteProtocolError):
                # It was running when the policy was loaded.
                assert len(statuses) >= 500
                assert statuses[-1] == 200
                peer = held.enter_context(site.dial())
    site.daemon.wait_for("policy loaded")
    denied = statuses.index(403)
    assert denied >= 500
    assert statuses == [200] * denied + [403] * (len(statuses) - denied)
    # The last line may still be on its way; the order of those that are there is what counts.
    lines = [line for line in site.daemon.log[begun:] if line["event"] != "connection closed"]
    loaded = next(at for at, line in enumerate(lines) if line["event"] == "policy loaded")
    assert all(line["decision"] == "allowed" for line in lines[:loaded])
    late = [line for line in lines[loaded + 1 :] if line["decision"] == "allowed"]
    assert len(late) <= 1, "only one can have been running when the policy was loaded"
    assert lines[loaded + 1 + len(late)]["decision"] == "refused"
    assert late == lines[loaded + 1 :][: len(late)]


def test_file_that_is_rewritten_in_place_is_read(
    site: Site, policies: Policies, peer: HttpPeer
) -> None:
    for _ in range(3):
        policies.path.write_text(NARROW)
        site.daemon.wait_for("policy loaded", asked_by="file")
        assert peer.ask("GET", "/v1/x").status == 403
        policies.path.write_text(ALL)
        site.daemon.wait_for("policy loaded", asked_by="file")
        assert peer.ask("GET", "/v1/x").status == 200


def test_file_that_goes_and_comes_back_is_read(
    site: Site, policies: Policies, peer: HttpPeer
) -> None:
    policies.path.unlink()
    assert "No such file" in policies.refused()["problems"][0]
    assert peer.ask("GET", "/v1/x").status == 200, "the one in force stays in force"
    policies.path.write_text(NARROW)
    site.daemon.wait_for("policy loaded", asked_by="file")
    assert peer.ask("GET", "/v1/x").status == 403


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(b"", "no [[allow]] rule", id="nothing"),
        pytest.param(
            b'[[deny]]\nname = "d"\npeers = ["spiffe://a/b"]\n', "no [[allow]]", id="no allow"
        ),
        pytest.param(NARROW.encode() + b"[[allow]]\n", "name", id="a good rule and a bad one"),
        pytest.param(NARROW.encode() * 2, "two rules of that name", id="a name twice"),
        pytest.param(NARROW.encode() + b"[[allow", "syntax error", id="half of it"),
        pytest.param(NARROW.replace("narrow", "../x").encode(), "endpoints", id="an endpoint"),
        pytest.param(NARROW.replace("endpoints", "endpoint").encode(), "unknown key", id="a typo"),
        pytest.param(NARROW.encode() + b"# \xff", "utf-8", id="not UTF-8"),
        pytest.param(b"x = " + b"[" * 100_000, "recursion", id="too deep"),
    ],
)
def test_bad_policy_is_refused_whole_and_said_once(
    text: bytes, problem: str, site: Site, policies: Policies, peer: HttpPeer
) -> None:
    policies.rename_over(text)
    line = policies.refused()
    assert (line["level"], line["asked_by"]) == ("error", "file")
    assert problem in " ".join(line["problems"])
    said = len(site.daemon.lines("policy refused, the old one stays"))
    for target in ("/v1/x", "/v1/narrow"):
        assert peer.ask("GET", target).status == 200
    policies.rename_over(text)  # the same again is no news
    policies.publish(NARROW)
    assert peer.ask("GET", "/v1/x").status == 403
    assert len(site.daemon.lines("policy refused, the old one stays")) == said


def test_bad_policy_does_not_hide_the_good_one_that_was_in_force(
    site: Site, policies: Policies, peer: HttpPeer
) -> None:
    policies.path.write_text("nonsense")
    policies.refused()
    policies.path.write_text(ALL)
    site.daemon.wait_for("policy loaded", asked_by="file")
    assert peer.ask("GET", "/v1/x").status == 200


def test_sighup_reads_the_policy_whether_it_changed_or_not(
    site: Site, policies: Policies, peer: HttpPeer
) -> None:
    for _ in range(2):
        policies.hang_up()
        site.daemon.wait_for("policy loaded", asked_by="SIGHUP")
    policies.rename_over("nonsense")
    policies.refused()
    for _ in range(2):  # who asks is answered
        policies.hang_up()
        assert policies.refused()["asked_by"] == "SIGHUP"
    os.unlink(policies.path)
    policies.refused()
    policies.hang_up()
    assert policies.refused()["asked_by"] == "SIGHUP"
    assert peer.ask("GET", "/v1/x").status == 200


def test_running_answer_is_cut_when_its_endpoint_is_taken_away(
    site: Site, policies: Policies, peer: HttpPeer
) -> None:
    with site.dial() as idle:
        assert idle.ask("GET", "/v1/x").status == 200
        site.backend.forget()
        peer.sendall(request("GET", "/held/long"))
        call = site.backend.next_call()
        call.begin_stream()
        peer.until(b"\r\n\r\n")
        policies.publish(NARROW)
        assert peer.rest() == (b"", False), "what was cut must not look complete"
        assert call.wait_gone() == "ConnectionResetError"
        refused = idle.ask("GET", "/held/long")
        assert (refused.status, refused.get("connection")) == (403, None)
        assert idle.ask("GET", "/v1/narrow").status == 200


def test_running_answer_goes_on_when_another_rule_allows_it_now(
    site: Site, policies: Policies, peer: HttpPeer
) -> None:
    peer.sendall(request("GET", "/held/long"))
    call = site.backend.next_call()
    call.begin_stream()
    policies.publish(policy("GET /held/{name}", peer="spiffe://example.org/workload/*"))
    call.event("more")
    assert b"data: more\n\n\r\n" in peer.until(b"\n\n\r\n")
    call.end_stream()
    call.release()
    assert peer.until(b"0\r\n\r\n") == b"0\r\n\r\n"
    assert peer.ask("GET", "/v1/x").status == 403


def test_peer_that_nobody_admits_any_more_is_let_go_and_told_when_it_comes_back(
    site: Site, policies: Policies, peer: HttpPeer
) -> None:
    assert peer.ask("GET", "/v1/x").status == 200
    site.backend.forget()
    policies.publish(NOBODY_HERE)
    assert peer.rest() == (b"", True)
    with site.dial() as again:
        refused = again.ask("GET", "/v1/x")
        assert (refused.status, refused.get("connection")) == (403, "close")
        assert TRAEFIK in refused.json()["error"]["message"]
        assert "other" not in refused.body.decode()
        assert again.rest() == (b"", True)
    assert site.backend.untaken() == []


def test_deny_rule_that_is_added_beats_the_allow_rule(
    site: Site, policies: Policies, peer: HttpPeer
) -> None:
    assert peer.ask("GET", "/v1/x").status == 200
    policies.publish(ALL + f'[[deny]]\nname = "retired"\npeers = ["{TRAEFIK}"]\n')
    assert peer.rest() == (b"", True)
    with site.dial() as again:
        assert again.ask("GET", "/v1/x").status == 403


def test_peer_that_is_added_gets_in(site: Site, policies: Policies) -> None:
    with site.dial("/workload/new") as new:
        assert new.ask("GET", "/v1/x").status == 403
    policies.publish(policy("*", peer="spiffe://example.org/workload/*"))
    with site.dial("/workload/new") as new:
        assert new.ask("GET", "/v1/x").status == 200


def test_limits_change_with_the_policy(policies: Policies, peer: HttpPeer) -> None:
    assert peer.ask("POST", "/v1/x", body=b"12345").status == 200
    policies.publish(policy("*", more="max_body_bytes = 4\nrequests_per_second = 0.1\nburst = 2"))
    assert peer.ask("POST", "/v1/x", body=b"1234").status == 200
    assert peer.ask("GET", "/v1/x").status == 200
    assert peer.ask("GET", "/v1/x").status == 429
    policies.publish(ALL)
    assert peer.ask("POST", "/v1/x", body=b"12345").status == 200


def test_request_that_waited_is_decided_by_the_policy_of_the_moment_it_runs(
    site: Site, policies: Policies
) -> None:
    policies.publish(policy("*", more="concurrent_requests = 1"))
    with site.dial() as running, site.dial() as waiting:
        running.sendall(request("GET", "/held/running"))
        call = site.backend.next_call()
        waiting.sendall(request("GET", "/held/waiting"))
        with site.dial("/workload/stranger") as stranger:
            assert stranger.ask("GET", "/v1/x").status == 403  # by now the other one waits
        policies.publish(policy("GET /held/running", more="concurrent_requests = 1"))
        call.answer(200)
        call.release()
        assert running.answer().status == 200
        assert waiting.answer().status == 403
    assert site.backend.untaken() == []


def test_peer_that_is_admitted_while_it_is_connected_is_served_like_any_other(
    authority: Authority,
) -> None:
    more = "[connections]\nmaximum_handshakes = 2\n"
    with running_site(authority, more=more) as site, site.dial("/workload/new") as new:
        Policies(site).publish(policy("*", peer="spiffe://example.org/workload/*"))
        new.sendall(request("GET", "/held/long"))
        call = site.backend.next_call()
        call.begin_stream()
        new.until(b"\r\n\r\n")
        with silent(site.address, 4) as newcomers:
            for address in newcomers[:2]:
                site.daemon.wait_for("peer refused", address=address)
            call.event("still here")
            assert new.until(b"\n\n\r\n").endswith(b"data: still here\n\n\r\n")
        call.close()
