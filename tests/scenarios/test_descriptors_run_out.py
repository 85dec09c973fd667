"""A host that has no descriptor left for us costs some connections, never the daemon."""

from __future__ import annotations

import os
import resource
import ssl
import sys
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.client import connect, receive_exactly, server_serial
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import silent, turned_away

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux changes the limits of another process"
)


def _leave(daemon: Daemon, count: int) -> None:
    """Leave the daemon so many descriptors besides those that it has open."""
    pid = daemon.process.pid
    limit = len(os.listdir(Path("/proc") / str(pid) / "fd")) + count
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))


def _serves(daemon: Daemon, context: ssl.SSLContext) -> str:
    with connect(daemon.address, context) as tls:
        tls.sendall(b"hello")
        assert receive_exactly(tls, 5) == b"hello"
        return server_serial(tls)


def test_agent_restarts_meanwhile(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    _serves(daemon, traefik)
    agent.kill()
    daemon.wait_for("state changed", state="agent_lost", serving=True)
    _leave(daemon, 0)
    with silent(daemon.address, 5):
        # It says so ten times a second, and knocks at the agent's door twice a second.
        for _ in range(15):
            daemon.wait_for("cannot accept", reason="Too many open files")
    _leave(daemon, 200)
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    agent.start()
    daemon.wait_for("state changed", 30, state="ready", serving=True)
    assert _serves(daemon, traefik) == svid.serial


def test_no_descriptor_left_for_the_backend(
    launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    assert daemon.address
    _leave(daemon, 1)
    address, _ = turned_away(daemon.address, traefik)
    line = daemon.wait_for("backend unreachable", address=address)
    assert "Too many open files" in line["reason"]
    assert backend.received == 0  # it may be asked how it is, once a descriptor is free
    _leave(daemon, 200)
    _serves(daemon, traefik)
