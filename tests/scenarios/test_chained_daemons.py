"""Two daemons in a chain: one writes files from the agent, the other serves with those files.

What a platform does whose model server has no agent beside it: nobody is refused and nobody warns,
however often the files change under the one that reads them.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.core.svid import X509Svid
from tests.ca import Authority
from tests.client import connect, receive_exactly, server_serial
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend

# Half a minute of rotations is for whoever asks for it.
ROTATIONS = 300 if os.environ.get("FULL") else 30
EVERY_SECONDS = 0.1
# What the daemons may say above INFO: nothing.
QUIET = ("info", "debug")


def helper(folder: Path, agent: AgentProcess, keys: str = "") -> Daemon:
    """A daemon that only writes files."""
    config = folder / "helper.toml"
    config.write_text(
        f"""
[workload_api]
socket = "unix:{agent.path}"
[cert_files]
directory = "certs"
{keys}
[log]
format = "json"
"""
    )
    return Daemon(config)


def server(folder: Path, backend: EchoBackend, files: str, poll_seconds: float = 5) -> Daemon:
    """A daemon that serves with files."""
    (folder / "policy.toml").write_text(
        '[[allow]]\nname = "clients"\npeers = ["spiffe://example.org/workload/traefik"]\n'
    )
    config = folder / "server.toml"
    config.write_text(
        f"""
[identity_files]
{files}
poll_seconds = {poll_seconds}
[listener]
address = "127.0.0.1:0"
[backend]
address = "{backend.address}"
mode = "stream"
[policy]
file = "policy.toml"
[log]
format = "json"
"""
    )
    return Daemon(config)


SPIFFE_HELPER = """
certificate = "certs/svid.pem"
private_key = "certs/svid_key.pem"
bundle = "certs/svid_bundle.pem"
"""
# Through the link that is switched, as a reader that must not mix generations does.
KUBERNETES = """
certificate = "certs/current/tls.crt"
private_key = "certs/current/tls.key"
bundle = "certs/current/ca.crt"
"""


@pytest.fixture
def chain(folder: Path, agent: AgentProcess, backend: EchoBackend) -> Iterator[list[Daemon]]:
    daemons = [helper(folder, agent), server(folder, backend, SPIFFE_HELPER)]
    yield daemons
    for daemon in daemons:
        assert daemon.stop() == 0


class Handshakes(threading.Thread):
    """Connects without a pause, a whole round trip each; notes which serial it saw when."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        super().__init__(daemon=True)
        self.seen: dict[str, float] = {}
        self.count = 0
        self.faults: list[str] = []
        self._address, self._context = address, context
        self._end = threading.Event()
        self._new = threading.Condition()

    def run(self) -> None:
        while not self._end.is_set():
            try:
                with connect(self._address, self._context) as tls:
                    tls.sendall(b"hello")
                    assert receive_exactly(tls, 5) == b"hello"
                    serial = server_serial(tls)
            except (OSError, AssertionError) as exc:
                self.faults.append(repr(exc))
                continue
            with self._new:
                self.count += 1
                self.seen.setdefault(serial, time.monotonic())
                self._new.notify_all()

    def wait_for(self, serial: str) -> None:
        with self._new:
            assert self._new.wait_for(lambda: serial in self.seen, 30), f"{serial} is not served"

    def stop(self) -> None:
        self._end.set()
        self.join(20)


def test_hundreds_of_rotations_pass_through_the_files(
    chain: list[Daemon],
    agent: AgentProcess,
    authority: Authority,
    traefik: ssl.SSLContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    svids = [authority.svid() for _ in range(ROTATIONS)]
    peer = Handshakes(chain[1].address, traefik)
    peer.start()
    issued: dict[str, float] = {}
    pace = threading.Event()
    for svid in svids:
        issued[svid.serial] = time.monotonic()
        agent.send(svid, authority.bundle)
        # The pace of the agent, and no synchronisation.
        pace.wait(max(0.0, issued[svid.serial] + EVERY_SECONDS - time.monotonic()))
    peer.wait_for(svids[-1].serial)
    peer.stop()
    assert peer.faults == []
    for daemon in chain:
        assert [line for line in daemon.log if line["level"] not in QUIET] == []
    late = sorted(at - issued[one] for one, at in peer.seen.items() if one in issued)
    with capsys.disabled():
        print(
            f"\n{peer.count} handshakes, {len(late)} of {ROTATIONS} SVIDs seen, first seen after "
            f"{late[len(late) // 2]:.3f} s median, {late[int(len(late) * 0.99)]:.3f} s p99"
        )


def _rotate(agent: AgentProcess, authority: Authority) -> X509Svid:
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    return svid


def test_server_waits_for_files_that_are_not_there_yet(
    folder: Path, agent: AgentProcess, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    serving = server(folder, backend, KUBERNETES)
    line = serving.wait_for("identity files lost")
    assert "tls.crt" in line["reason"]
    writing = helper(folder, agent, 'layout = "kubernetes"')
    with connect(serving.address, traefik) as tls:
        tls.sendall(b"hello")
        assert receive_exactly(tls, 5) == b"hello"
    assert writing.stop() == 0
    assert serving.stop() == 0
