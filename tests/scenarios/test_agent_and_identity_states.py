"""What the operator reads in the log while the agent comes, goes, says no and says yes again."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from datetime import timedelta

import grpc
import pytest

from tests.ca import Authority
from tests.client import connect, receive_exactly, server_serial
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.scenarios.backends import HttpServer
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import dial, free_port, turned_away

OURS = "spiffe://example.org/workload/model-server"


def _serves(daemon: Daemon, context: ssl.SSLContext) -> str:
    """Talk through the daemon; gives the serial that it presented."""
    with connect(daemon.address, context) as tls:
        tls.sendall(b"hello")
        assert receive_exactly(tls, 5) == b"hello"
        return server_serial(tls)


def _until_refused(daemon: Daemon, context: ssl.SSLContext) -> None:
    """Connect until the daemon refuses for want of an identity."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            dial(daemon.address, context).close()
        except (ssl.SSLError, ConnectionError):
            _is_refused(daemon, context)
            return
    raise AssertionError("the daemon serves on")


def _is_refused(daemon: Daemon, context: ssl.SSLContext) -> None:
    address, clean = turned_away(daemon.address, context)
    assert not clean
    daemon.wait_for("peer refused", address=address, reason="no identity to serve with")


def _echoes(tls: ssl.SSLSocket, data: bytes) -> bool:
    tls.sendall(data)
    return receive_exactly(tls, len(data)) == data


def test_without_an_agent_the_port_refuses_until_there_is_an_identity(
    launch: Launch, agent: AgentProcess, traefik: ssl.SSLContext
) -> None:
    agent.stop()
    port = free_port()
    daemon = launch(port=port)
    lost = daemon.wait_for("agent lost")
    assert (lost["level"], lost["serving"]) == ("warning", False)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 20)
    assert not daemon.lines("ready")
    agent.start()
    daemon.wait_for("identity obtained", spiffe_id=OURS)
    daemon.wait_for("state changed", state="ready", before="starting", serving=True)
    assert daemon.address == ("127.0.0.1", port)
    _serves(daemon, traefik)


def test_agent_that_does_not_know_us_yet(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    agent.deny()
    port = free_port()
    daemon = launch(port=port)
    denied = daemon.wait_for("identity denied", reason="no identity issued")
    assert denied["level"] == "error"
    assert "registration entry" in denied["hint"]
    daemon.wait_for("state changed", state="denied", before="starting", serving=False)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 20)
    agent.send(authority.svid(), authority.bundle)
    daemon.wait_for("state changed", state="ready", before="denied", serving=True)
    _serves(daemon, traefik)


def test_agent_lost_is_said_once_and_costs_nothing(
    launch: Launch, agent: AgentProcess, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    before = _serves(daemon, traefik)
    agent.kill()
    daemon.wait_for("agent lost", serving=True)
    daemon.wait_for("state changed", state="agent_lost", before="ready", serving=True)
    assert _serves(daemon, traefik) == before
    agent.start()
    daemon.wait_for("state changed", state="ready", before="agent_lost")
    reasons = [line["reason"] for line in daemon.lines("agent lost")]
    assert len(reasons) == len(set(reasons)), "said again only when there is something new to say"
    assert len(daemon.lines("identity obtained") + daemon.lines("identity rotated")) == 1


def test_agent_that_ends_the_stream_in_good_order_is_asked_again(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    daemon = launch()
    assert _serves(daemon, traefik) == svid.serial
    agent.fail(grpc.StatusCode.OK)
    daemon.wait_for("agent lost", reason="the agent ended the stream")
    daemon.wait_for("state changed", state="agent_lost", serving=True)
    agent.send(svid, authority.bundle)
    daemon.wait_for("state changed", state="ready")
    assert _serves(daemon, traefik) == svid.serial


def test_something_else_listens_where_the_agent_should(
    launch: Launch, agent: AgentProcess, traefik: ssl.SSLContext
) -> None:
    agent.stop()
    other = HttpServer(agent.path)
    daemon = launch()
    # What follows the status is gRPC's and depends on which of its write and its read fails first.
    assert daemon.wait_for("agent lost", serving=False)["reason"].startswith("UNAVAILABLE: ")
    other.close()
    agent.start()
    daemon.wait_for("state changed", 30, state="ready", before="starting", serving=True)
    _serves(daemon, traefik)


def test_denied_serves_within_the_grace(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    _serves(daemon, traefik)
    agent.deny()
    daemon.wait_for("identity denied", reason="no identity issued")
    daemon.wait_for("state changed", state="denied", before="ready", serving=True)
    _serves(daemon, traefik)
    agent.send(authority.svid(), authority.bundle)
    daemon.wait_for("state changed", state="ready", before="denied", serving=True)
    _serves(daemon, traefik)
    assert len(daemon.lines("identity denied")) == 1, "said once, not at every retry"


def test_denied_past_the_grace_refuses_new_peers_and_lets_streams_run(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    daemon = launch(workload_api="denied_grace_seconds = 0.5")
    with connect(daemon.address, traefik) as stream:
        assert _echoes(stream, b"before")
        agent.deny()
        daemon.wait_for("state changed", state="denied", serving=True)
        _until_refused(daemon, traefik)
        assert _echoes(stream, b"a running answer is not cut")
        svid = authority.svid()
        agent.send(svid, authority.bundle)
        daemon.wait_for("identity rotated", serial=svid.serial)
        daemon.wait_for("state changed", state="ready", before="denied", serving=True)
        assert _serves(daemon, traefik) == svid.serial
        assert _echoes(stream, b"after")


def test_no_grace_means_that_a_denial_counts_at_once(
    launch: Launch, agent: AgentProcess, traefik: ssl.SSLContext
) -> None:
    daemon = launch(workload_api="denied_grace_seconds = 0")
    _serves(daemon, traefik)
    agent.deny()
    daemon.wait_for("state changed", state="denied", before="ready", serving=False)
    _is_refused(daemon, traefik)


def test_end_of_the_grace_is_said(
    launch: Launch, agent: AgentProcess, traefik: ssl.SSLContext
) -> None:
    daemon = launch(workload_api="denied_grace_seconds = 0.5")
    _serves(daemon, traefik)
    agent.deny()
    daemon.wait_for("state changed", state="denied", serving=True)
    daemon.wait_for("state changed", state="denied", serving=False)
    _is_refused(daemon, traefik)


def test_restart_of_the_agent_does_not_lift_a_denial(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    daemon = launch(workload_api="denied_grace_seconds = 0")
    _serves(daemon, traefik)
    agent.deny()
    daemon.wait_for("state changed", state="denied", serving=False)
    agent.kill()
    _is_refused(daemon, traefik)
    agent.start()
    deadline = time.monotonic() + 20
    while not agent.calls():
        assert time.monotonic() < deadline, "the agent that came back was not asked"
    _is_refused(daemon, traefik)
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    daemon.wait_for("state changed", state="ready", before="denied", serving=True)
    assert _serves(daemon, traefik) == svid.serial


def test_agent_lost_does_not_claim_to_serve_with_an_expired_svid(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    daemon.wait_for("ready")  # its start takes longer than a short life on a busy machine
    agent.send(authority.svid(not_after=timedelta(seconds=3)), authority.bundle)
    daemon.wait_for("state changed", state="expired", serving=False)
    agent.kill()
    assert daemon.wait_for("agent lost")["serving"] is False
    _is_refused(daemon, traefik)


def test_svid_that_expires_while_the_agent_is_away(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    with connect(daemon.address, traefik) as stream:
        svid = authority.svid(not_after=timedelta(seconds=5))
        agent.send(svid, authority.bundle)
        daemon.wait_for("identity rotated", serial=svid.serial)
        agent.kill()
        daemon.wait_for("state changed", state="agent_lost", serving=True)
        _serves(daemon, traefik)
        daemon.wait_for("state changed", state="expired", before="agent_lost", serving=False)
        _is_refused(daemon, traefik)
        assert _echoes(stream, b"a running answer is not cut")
        svid = authority.svid()
        agent.send(svid, authority.bundle)
        agent.start()
        daemon.wait_for("state changed", state="ready", before="expired", serving=True)
        assert _serves(daemon, traefik) == svid.serial


def test_svid_that_expires_while_the_agent_hangs(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    agent.send(authority.svid(), authority.bundle)
    daemon = launch()
    daemon.wait_for("ready")  # its start takes longer than a short life on a busy machine
    short = authority.svid(not_after=timedelta(seconds=4))
    agent.send(short, authority.bundle)
    daemon.wait_for("identity rotated", serial=short.serial)
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        daemon.wait_for("state changed", state="expired", serving=False)
        _is_refused(daemon, traefik)
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    daemon.wait_for("state changed", state="ready", before="expired", serving=True)
    assert _serves(daemon, traefik) == svid.serial


def test_bad_update_is_discarded_and_the_good_identity_kept(
    launch: Launch,
    agent: AgentProcess,
    authority: Authority,
    foreign: Authority,
    traefik: ssl.SSLContext,
) -> None:
    daemon = launch()
    before = _serves(daemon, traefik)
    agent.send(authority.svid(not_after=timedelta(seconds=-1)), authority.bundle)
    assert "expired" in daemon.wait_for("update discarded", kept=True)["reason"]
    agent.send(authority.svid(), foreign.bundle)
    daemon.wait_for("update discarded", kept=True)
    agent.send_bytes(b"\xff\xff")
    assert "no X509SVIDResponse" in daemon.wait_for("update discarded", kept=True)["reason"]
    agent.send_bytes(b"")
    assert "no SVID" in daemon.wait_for("update discarded", kept=True)["reason"]
    assert _serves(daemon, traefik) == before
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    daemon.wait_for("identity rotated", serial=svid.serial)
    assert _serves(daemon, traefik) == svid.serial


def test_configured_id_that_is_not_offered(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    port = free_port()
    agent.send([authority.svid("/workload/a"), authority.svid("/workload/b")], authority.bundle)
    daemon = launch(port=port, workload_api=f'spiffe_id = "{OURS}"')
    reason = daemon.wait_for("identity denied")["reason"]
    assert OURS in reason
    for offered in ("spiffe://example.org/workload/a", "spiffe://example.org/workload/b"):
        assert offered in reason
    daemon.wait_for("state changed", state="denied", before="starting", serving=False)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 20)
    ours = authority.svid()
    agent.send([authority.svid("/workload/a"), ours], authority.bundle)
    daemon.wait_for("identity obtained", spiffe_id=OURS, serial=ours.serial)
    daemon.wait_for("state changed", state="ready", before="denied", serving=True)
    assert _serves(daemon, traefik) == ours.serial


def test_hint_picks_one_of_several_svids(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    internal = authority.svid("/workload/a", hint="internal")
    external = authority.svid("/workload/b", hint="external")
    agent.send([internal, external], authority.bundle)
    daemon = launch(workload_api='hint = "external"')
    assert _serves(daemon, traefik) == external.serial
    agent.send([authority.svid("/workload/c", hint="External"), internal], authority.bundle)
    reason = daemon.wait_for("identity denied")["reason"]
    assert "hint 'external'" in reason
    daemon.wait_for("state changed", state="denied", before="ready", serving=True)


def test_without_a_choice_the_first_svid_is_ours(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    first, second = authority.svid("/workload/b"), authority.svid("/workload/a")
    agent.send([first, second], authority.bundle)
    daemon = launch()
    assert _serves(daemon, traefik) == first.serial


def test_authority_that_left_the_bundle_is_refused_and_its_streams_are_cut(
    launch: Launch,
    agent: AgentProcess,
    authority: Authority,
    traefik: ssl.SSLContext,
) -> None:
    daemon = launch()
    new = Authority("example.org")
    with connect(daemon.address, traefik) as old:
        assert _echoes(old, b"before")
        svid = new.svid()
        agent.send(svid, new.bundle)
        daemon.wait_for("identity rotated", serial=svid.serial)
        closed = daemon.wait_for("connection closed")
        assert closed["end"].startswith("cut: not proven by the trust bundle of example.org")
        traefik.load_verify_locations(cadata=new.ca.cert_pem.bytes().decode())
        address, _ = turned_away(daemon.address, traefik)
        line = daemon.wait_for("peer refused", address=address)
        assert "not proven by the trust bundle of example.org" in line["reason"]
