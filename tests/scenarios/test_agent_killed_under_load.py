"""An agent that dies takes nothing with it: the SVID we have is served until the agent is back."""

from __future__ import annotations

import os
import ssl
import time

from tests.ca import Authority
from tests.client import connect, server_serial
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.scenarios.conftest import Launch
from tests.scenarios.echo_load import Arrivals, EchoLoad

RESTARTS = 20 if os.environ.get("FULL") else 6
STREAMS = 32


def test_streams_live_on_and_the_identity_comes_back_each_time(
    launch: Launch,
    agent: AgentProcess,
    backend: EchoBackend,
    authority: Authority,
    traefik: ssl.SSLContext,
) -> None:
    old = authority.svid()
    agent.send(old, authority.bundle)
    daemon = launch()
    recoveries: list[float] = []
    with (
        EchoLoad(daemon.address, traefik, STREAMS) as load,
        Arrivals(daemon.address, traefik) as arrivals,
    ):
        for _ in range(RESTARTS):
            agent.kill()
            daemon.wait_for("state changed", state="agent_lost", serving=True)
            with connect(daemon.address, traefik) as tls:
                assert server_serial(tls) == old.serial, "the old SVID is served meanwhile"
            old = authority.svid()
            agent.send(old, authority.bundle)
            agent.start()
            back = time.monotonic()
            daemon.wait_for("identity rotated", serial=old.serial)
            recoveries.append(time.monotonic() - back)
            daemon.wait_for("state changed", state="ready")
            with connect(daemon.address, traefik) as tls:
                assert server_serial(tls) == old.serial
        assert backend.open >= STREAMS, "no stream ended before its time"
    assert load.finished == STREAMS
    print(
        f"\n{RESTARTS} agents killed: identity back at most {max(recoveries) * 1000:.0f} ms after "
        f"the agent was, {sorted(recoveries)[RESTARTS // 2] * 1000:.0f} ms in the median; "
        f"{STREAMS} streams echoed {load.echoed / 2**20:.0f} MiB, slowest chunk "
        f"{load.slowest * 1000:.0f} ms; {len(arrivals.seen)} new connections"
    )
    assert len(daemon.lines("agent lost")) >= RESTARTS
    assert not [line for line in daemon.log if line["level"] == "error"]
