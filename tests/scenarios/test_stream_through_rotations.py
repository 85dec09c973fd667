"""A running answer goes on while the SVID rotates under it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.ca import Authority
from tests.client import client_context, connect, receive_exactly, server_serial
from tests.conftest import TRAEFIK
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess


def test_old_connection_lives_on_and_new_ones_get_the_newest_svid(
    start_daemon: Callable[..., Daemon], agent: AgentProcess, authority: Authority, folder: Path
) -> None:
    daemon = start_daemon()
    context = client_context(authority, authority.sign(authority.leaf(TRAEFIK)), folder)
    with connect(daemon.address, context) as old:
        first = server_serial(old)
        for number in range(3):
            svid = authority.svid()
            agent.send(svid, authority.bundle)
            daemon.wait_for("identity rotated", serial=svid.serial)
            with connect(daemon.address, context) as new:
                assert server_serial(new) == svid.serial != first
            old.sendall(b"%d" % number)
            assert receive_exactly(old, 1) == b"%d" % number
