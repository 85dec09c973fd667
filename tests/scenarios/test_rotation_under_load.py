"""A rotation drops nothing, however often and under whatever load it comes."""

from __future__ import annotations

import os
import ssl
import threading
import time

from tests.ca import Authority
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.scenarios.conftest import Launch
from tests.scenarios.echo_load import Arrival, Arrivals, EchoLoad
from tests.scenarios.memory import resident_mib

ROTATIONS = 200 if os.environ.get("FULL") else 60
STREAMS = 32
EVERY_SECONDS = 0.05
# How late a new connection may be with the newest SVID: what is promised, not what was measured.
ALLOWANCE_SECONDS = 1.0


def test_streams_live_on_and_new_connections_get_a_new_svid(
    launch: Launch,
    agent: AgentProcess,
    backend: EchoBackend,
    authority: Authority,
    traefik: ssl.SSLContext,
) -> None:
    first = authority.svid()
    agent.send(first, authority.bundle)
    issued = [(time.monotonic(), first.serial)]
    daemon = launch()
    with EchoLoad(daemon.address, traefik, STREAMS) as load:
        before = resident_mib(daemon.process.pid)
        with Arrivals(daemon.address, traefik) as arrivals:
            pace, begun = threading.Event(), time.monotonic()
            for number in range(ROTATIONS):
                svid = authority.svid()
                agent.send(svid, authority.bundle)
                issued.append((time.monotonic(), svid.serial))
                pace.wait(max(0.0, begun + (number + 1) * EVERY_SECONDS - time.monotonic()))
            daemon.wait_for("identity rotated", serial=issued[-1][1])
        after = resident_mib(daemon.process.pid)
        assert backend.open >= STREAMS, "no stream ended before its time"
    assert load.finished == STREAMS
    late = [_lateness(arrival, issued) for arrival in arrivals.seen]
    assert len(late) > 50
    assert len({arrival.serial for arrival in arrivals.seen}) > 20
    print(
        f"\n{ROTATIONS} rotations in {issued[-1][0] - issued[1][0]:.1f} s, "
        f"{len(daemon.lines('identity rotated'))} applied; {STREAMS} streams echoed "
        f"{load.echoed / 2**20:.0f} MiB, slowest chunk {load.slowest * 1000:.0f} ms; "
        f"{len(late)} new connections, at most {max(late) * 1000:.0f} ms behind the newest SVID; "
        f"resident memory {before:.0f} -> {after:.0f} MiB"
    )
    assert max(late) <= ALLOWANCE_SECONDS
    assert not [line for line in daemon.log if line["level"] in ("error", "warning")]


def _lateness(arrival: Arrival, issued: list[tuple[float, str]]) -> float:
    """For how long the SVID had been superseded when the connection that got it began."""
    at = [serial for _, serial in issued].index(arrival.serial)
    superseded = issued[at + 1][0] if at + 1 < len(issued) else arrival.began
    return max(0.0, arrival.began - superseded)
