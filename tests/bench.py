"""Figures of the daemon on this machine: `.venv/bin/python -m tests.bench`. Asserts nothing.

update to handshake   seconds from the agent's update to the first handshake with its SVID
idle                  resident memory alone, and per idle connection
round trip            what a small request on a kept connection takes longer than directly
recovery              seconds from an agent's return to the next identity event
"""

from __future__ import annotations

import resource
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from tests.ca import Authority
from tests.client import client_context, connect, receive_exactly, server_serial
from tests.conftest import TRAEFIK
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend

UPDATES = 200
IDLE_CONNECTIONS = 1000
WARM_CONNECTIONS = 50
ROUND_TRIPS = 5000
OUTAGES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass
class Rig:
    """All parts, running."""

    authority: Authority
    agent: AgentProcess
    backend: EchoBackend
    daemon: Daemon
    context: ssl.SSLContext


@contextmanager
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        folder = Path(name)
        authority = Authority("example.org")
        agent = AgentProcess(folder / "agent.sock")
        agent.send(authority.svid(), authority.bundle)
        agent.start()
        backend = EchoBackend()
        files = f'[cert_files]\ndirectory = "{folder}/certs"'
        daemon = Daemon(write_config(folder, agent.path, backend.address, more=files))
        context = client_context(authority, authority.sign(authority.leaf(TRAEFIK)), folder)
        try:
            daemon.wait_for("ready")
            yield Rig(authority, agent, backend, daemon, context)
        finally:
            daemon.stop()
            agent.stop()
            backend.close()


def update_to_handshake(parts: Rig) -> None:
    seconds = []
    for _ in range(UPDATES):
        svid = parts.authority.svid()
        started = time.perf_counter()
        parts.agent.send(svid, parts.authority.bundle)
        while True:
            with connect(parts.daemon.address, parts.context) as tls:
                if server_serial(tls) == svid.serial:
                    break
        seconds.append(time.perf_counter() - started)
    show("update to handshake", seconds)


def idle(parts: Rig) -> None:
    time.sleep(2)  # let the start's garbage go; a benchmark may wait
    base = resident_kib(parts.daemon.process.pid)
    print(f"idle: {base / 1024:.1f} MiB resident, {threads(parts.daemon.process.pid)} threads")
    # Python's client sends the authorities that it trusts along with its leaf; Traefik does not,
    # and each costs the server 4.5 KiB a connection. This client trusts none.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tempfile.TemporaryDirectory() as folder:
        issued = parts.authority.sign(parts.authority.leaf(TRAEFIK))
        context.load_cert_chain(issued.write(Path(folder), "client"))
    held = [held_connection(parts, context) for _ in range(WARM_CONNECTIONS)]
    warm = resident_kib(parts.daemon.process.pid)
    held += [held_connection(parts, context) for _ in range(IDLE_CONNECTIONS)]
    time.sleep(2)
    now = resident_kib(parts.daemon.process.pid)
    each = (now - warm) / IDLE_CONNECTIONS
    cold = (now - base) / len(held)
    print(f"idle: {each:.1f} KiB for each of {IDLE_CONNECTIONS} more connections after the first")
    print(f"idle: {cold:.1f} KiB counted from a cold start, {now / 1024:.1f} MiB in all")
    for tls in held:
        tls.close()


def held_connection(parts: Rig, context: ssl.SSLContext) -> ssl.SSLSocket:
    tls = connect(parts.daemon.address, context)
    tls.sendall(b"ping")
    receive_exactly(tls, 4)
    return tls


def round_trip(parts: Rig) -> None:
    host, _, port = parts.backend.address.rpartition(":")
    direct, through = [], []
    with (
        connect(parts.daemon.address, parts.context) as tls,
        socket.create_connection((host, int(port))) as plain,
    ):
        for one in (tls, plain):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(ROUND_TRIPS):  # in turn, so that both meet the same moods of the machine
            direct.append(ping(plain))
            through.append(ping(tls))
    show("round trip, directly", direct)
    show("round trip, through the sidecar", through)
    print(f"round trip: {1000 * (median(through) - median(direct)):+.3f} ms at the median")


def recovery(parts: Rig) -> None:
    for outage in OUTAGES:
        parts.agent.kill()
        time.sleep(outage)
        before = len(parts.daemon.lines("state changed"))
        parts.agent.start()
        started = time.perf_counter()
        while len(parts.daemon.lines("state changed")) == before:
            time.sleep(0.001)
        print(f"recovery: {time.perf_counter() - started:.3f} s after an outage of {outage:g} s")


def ping(sock: socket.socket) -> float:
    started = time.perf_counter()
    sock.sendall(b"x" * 200)
    receive_exactly(sock, 200)
    return time.perf_counter() - started


def show(what: str, seconds: list[float]) -> None:
    p99 = quantiles(seconds, n=100)[98]
    print(
        f"{what}: median {1000 * median(seconds):.3f} ms, p99 {1000 * p99:.3f} ms, "
        f"slowest {1000 * max(seconds):.3f} ms of {len(seconds)}"
    )


def resident_kib(pid: int) -> int:
    return status(pid, "VmRSS")


def threads(pid: int) -> int:
    return status(pid, "Threads")


def status(pid: int, key: str) -> int:
    if not Path("/proc").is_dir():
        sys.exit("resident memory is read from /proc: Linux only")
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for measure in (idle, round_trip, update_to_handshake, recovery):
        with rig() as parts:
            measure(parts)


if __name__ == "__main__":
    main()
