"""Whoever is refused leaves a line in the log and no trace at the model server."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from sidecar.core.svid import serial_text
from tests.ca import Authority, Issued
from tests.client import client_context, connect, receive_exactly
from tests.conftest import TRAEFIK
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import free_port, turned_away, until_it_listens

ALLOWED = f"spiffe://example.org{TRAEFIK}"
UNKNOWN = Authority("unknown.net")
HOUR = timedelta(hours=1)

Presents = Callable[[Authority, Authority], Issued | None]


def _forged(by: Authority, uri: str = ALLOWED) -> Issued:
    return by.sign(replace(by.leaf(), uris=(uri,)))


def _dated(by: Authority, begin: timedelta) -> Issued:
    return by.sign(replace(by.leaf(TRAEFIK), not_before=begin, not_after=begin + HOUR))


def _only_the_honest_peer_arrived(
    daemon: Daemon, backend: EchoBackend, honest: ssl.SSLContext
) -> None:
    """What is sent after a refusal arrives after it: nothing of the refused is on its way."""
    with connect(daemon.address, honest) as tls:
        tls.sendall(b"honest")
        assert receive_exactly(tls, 6) == b"honest"
    assert (backend.connections, backend.received) == (1, 6)


@pytest.mark.parametrize(
    ("presents", "claimed", "reason"),
    [
        pytest.param(
            lambda _ours, foreign: _forged(foreign),
            ALLOWED,
            "not proven by the trust bundle of example.org",
            id="federated authority forges an allowed ID",
        ),
        pytest.param(
            lambda _ours, _foreign: _forged(UNKNOWN),
            ALLOWED,
            "not proven by the trust bundle of example.org",
            id="unknown authority forges an allowed ID",
        ),
        pytest.param(
            lambda _ours, _foreign: _forged(Authority("example.org")),
            ALLOWED,
            "not proven by the trust bundle of example.org",
            id="another authority of the same name",
        ),
        pytest.param(
            lambda _ours, _foreign: _forged(UNKNOWN, "spiffe://unknown.net/workload/traefik"),
            "spiffe://unknown.net/workload/traefik",
            "no trust bundle for trust domain unknown.net",
            id="unknown trust domain",
        ),
        pytest.param(
            lambda ours, _foreign: _forged(ours, "spiffe://other.org/workload/traefik"),
            "spiffe://other.org/workload/traefik",
            "not proven by the trust bundle of other.org",
            id="our own authority forges an ID of a federated trust domain",
        ),
        pytest.param(
            lambda ours, _foreign: _dated(ours, -2 * HOUR), ALLOWED, "expired at", id="expired"
        ),
        pytest.param(
            lambda ours, _foreign: _dated(ours, HOUR),
            ALLOWED,
            "not valid before",
            id="not yet valid",
        ),
        pytest.param(
            lambda ours, _foreign: ours.sign(replace(ours.leaf(), uris=(), dns=("traefik",))),
            None,
            "0 URI names",
            id="a web certificate of our authority",
        ),
        pytest.param(
            lambda ours, _foreign: Issued((ours.certificate,), ours.key),
            None,
            "0 URI names",
            id="the authority itself",
        ),
        pytest.param(
            lambda ours, _foreign: ours.sign(
                replace(ours.leaf(), uris=(ALLOWED, "spiffe://example.org/a"))
            ),
            ALLOWED,
            "2 URI names",
            id="two IDs, the first one allowed",
        ),
        pytest.param(
            lambda _ours, _foreign: None, None, "no certificate presented", id="no certificate"
        ),
    ],
)
def test_peer_without_a_valid_svid(
    presents: Presents,
    claimed: str | None,
    reason: str,
    launch: Launch,
    agent: AgentProcess,
    backend: EchoBackend,
    authority: Authority,
    foreign: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
) -> None:
    agent.send(authority.svid(), authority.bundle, [foreign.bundle])
    daemon = launch(
        peers=(
            ALLOWED,
            "spiffe://other.org/workload/traefik",
            "spiffe://unknown.net/workload/traefik",
        )
    )
    context = client_context(authority, presents(authority, foreign), folder)
    address, _ = turned_away(daemon.address, context)
    line = daemon.wait_for("peer refused", address=address)
    assert reason in line["reason"]
    assert line["level"] == "warning"
    assert line["claimed"].startswith(repr(claimed) if claimed else "none")
    assert "peer" not in line, "nothing was proven, so nobody may be named as the peer"
    _only_the_honest_peer_arrived(daemon, backend, traefik)


def test_plain_http(launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext) -> None:
    daemon = launch()
    address, _ = turned_away(daemon.address, None)
    line = daemon.wait_for("peer refused", address=address)
    reason = "the peer sent plain HTTP, expected TLS"
    assert (line["claimed"], line["reason"]) == ("none", reason)
    assert "https://" in line["hint"]
    _only_the_honest_peer_arrived(daemon, backend, traefik)


TOO_OLD = "the peer offers TLS 1.2 at most, expected TLS 1.3"


def test_peer_that_knows_no_tls_newer_than_1_2(
    launch: Launch,
    backend: EchoBackend,
    authority: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
) -> None:
    daemon = launch()
    old = client_context(authority, authority.sign(authority.leaf(TRAEFIK)), folder, "1.2")
    address, _ = turned_away(daemon.address, old)
    line = daemon.wait_for("peer refused", address=address)
    assert (line["claimed"], line["reason"]) == ("none", TOO_OLD)
    assert "tls_minimum_version" in line["hint"]
    _only_the_honest_peer_arrived(daemon, backend, traefik)


@pytest.mark.parametrize(
    "version", [pytest.param("1.2", id="TLS 1.2"), pytest.param("1.3", id="TLS 1.3")]
)
def test_stranger_of_our_trust_domain_is_closed_before_any_byte(
    version: str,
    launch: Launch,
    backend: EchoBackend,
    authority: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
) -> None:
    daemon = launch(listener='tls_minimum_version = "1.2"')
    stranger = authority.sign(authority.leaf("/workload/stranger"))
    context = client_context(authority, stranger, folder, version)
    address, clean = turned_away(daemon.address, context)
    assert clean, "a valid SVID gets a close that it can tell from a fault"
    line = daemon.wait_for("peer refused", address=address)
    assert line["peer"] == "spiffe://example.org/workload/stranger"
    assert line["reason"] == "no allow rule names this peer"
    assert line["rule"] is None
    assert line["serial"] == serial_text(stranger.chain[0])
    _only_the_honest_peer_arrived(daemon, backend, traefik)


def test_deny_rule_beats_the_allow_rule_that_names_the_peer(
    launch: Launch,
    backend: EchoBackend,
    authority: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
) -> None:
    daemon = launch(
        peers=("spiffe://example.org/**",),
        policy='[[deny]]\nname = "retired"\npeers = ["spiffe://example.org/workload/old-*"]\n',
    )
    retired = client_context(
        authority, authority.sign(authority.leaf("/workload/old-traefik")), folder
    )
    address, clean = turned_away(daemon.address, retired)
    assert clean
    line = daemon.wait_for("peer refused", address=address)
    assert line["peer"] == "spiffe://example.org/workload/old-traefik"
    assert (line["rule"], line["reason"]) == ("retired", "denied by rule 'retired'")
    _only_the_honest_peer_arrived(daemon, backend, traefik)


def test_federated_peer_is_admitted_when_policy_names_it_and_refused_when_not(
    launch: Launch,
    agent: AgentProcess,
    backend: EchoBackend,
    authority: Authority,
    foreign: Authority,
    folder: Path,
) -> None:
    agent.send(authority.svid(), authority.bundle, [foreign.bundle])
    daemon = launch(peers=("spiffe://other.org/workload/traefik",))
    named = client_context(authority, foreign.sign(foreign.leaf(TRAEFIK)), folder)
    other = client_context(authority, foreign.sign(foreign.leaf("/workload/other")), folder)
    same_path = client_context(authority, authority.sign(authority.leaf(TRAEFIK)), folder)
    for context, peer in (
        (other, "spiffe://other.org/workload/other"),
        (same_path, "spiffe://example.org/workload/traefik"),
    ):
        address, _ = turned_away(daemon.address, context)
        line = daemon.wait_for("peer refused", address=address)
        assert (line["peer"], line["reason"]) == (peer, "no allow rule names this peer")
    _only_the_honest_peer_arrived(daemon, backend, named)
    daemon.wait_for("connection closed", peer="spiffe://other.org/workload/traefik")


def test_refused_name_cannot_begin_a_line_of_its_own(
    launch: Launch, authority: Authority, folder: Path
) -> None:
    port = free_port()
    daemon = launch(port=port, log_format="console")
    until_it_listens(port)
    uri = "spiffe://example.org/a\n1999-01-01T00:00:00.000000Z info ready \x1b[2J"
    turned_away(("127.0.0.1", port), client_context(authority, _forged(authority, uri), folder))
    daemon.stop()
    (line,) = [line for line in daemon.raw if "1999-01-01" in line]
    assert "peer refused" in line
    assert not line.startswith("1999")
    assert "\x1b" not in line
