"""The daemon on a real SPIRE: the same stories as on the test agent, told by SPIRE itself.

Set SPIRE_BIN to a folder with `spire-server` and `spire-agent` to run them.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.client import connect, receive_exactly, server_serial
from tests.daemon import Daemon
from tests.fake_backend import EchoBackend
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import turned_away
from tests.spire import Spire

OURS = "/workload/model-server"
CHOSEN = f'spiffe_id = "spiffe://example.org{OURS}"\ndenied_grace_seconds = 0'
SHORT_TTL = 20  # SPIRE dates SVIDs back by 10 s and renews at half life: every 5 s or so


@pytest.fixture(scope="module")
def spire() -> Iterator[Spire]:
    """One server and one agent for all tests of this file."""
    binaries = os.environ.get("SPIRE_BIN")
    if not binaries:
        pytest.skip("SPIRE_BIN is not set to a folder with spire-server and spire-agent")
    with tempfile.TemporaryDirectory(prefix="sp-") as name:
        spire = Spire(Path(binaries).resolve(), Path(name))
        try:
            spire.start()
            yield spire
        finally:
            spire.stop()


@pytest.fixture
def agent(spire: Spire) -> Iterator[Spire]:
    """In the place of the test agent; nothing is registered at the beginning."""
    yield spire
    spire.forget_all()


@pytest.fixture
def traefik(spire: Spire) -> ssl.SSLContext:
    """In the place of the test authority's."""
    return spire.minted("/workload/traefik")


def _echoes(tls: ssl.SSLSocket, data: bytes) -> bool:
    tls.sendall(data)
    return receive_exactly(tls, len(data)) == data


def _serves(daemon: Daemon, context: ssl.SSLContext) -> str:
    with connect(daemon.address, context) as tls:
        assert _echoes(tls, b"hello")
        return server_serial(tls)


def _tell(daemon: Daemon, title: str) -> None:
    """For whoever runs pytest with -s: what an operator would have read."""
    print(f"\n--- {title}\n" + "".join(daemon.raw))


def test_registered_after_the_start_deleted_and_registered_again(
    launch: Launch, agent: Spire, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    daemon = launch(workload_api="denied_grace_seconds = 0")
    daemon.wait_for("identity denied", reason="no identity issued")
    daemon.wait_for("state changed", state="denied", before="starting", serving=False)
    entry = agent.register(OURS)
    begun = time.monotonic()
    daemon.wait_for("identity obtained", 60, spiffe_id=f"spiffe://example.org{OURS}")
    print(f"\nregistered, identity after {time.monotonic() - begun:.1f} s")
    with connect(daemon.address, traefik) as stream:
        assert _echoes(stream, b"before")
        address, clean = turned_away(daemon.address, agent.minted("/workload/stranger"))
        assert clean
        line = daemon.wait_for("peer refused", address=address)
        assert line["peer"] == "spiffe://example.org/workload/stranger"
        assert backend.connections == 1

        agent.delete(entry)
        begun = time.monotonic()
        daemon.wait_for("identity denied", 60, reason="no identity issued")
        print(f"deleted, denied after {time.monotonic() - begun:.1f} s")
        daemon.wait_for("state changed", state="denied", before="ready", serving=False)
        address, _ = turned_away(daemon.address, traefik)
        daemon.wait_for("peer refused", address=address, reason="no identity to serve with")
        assert _echoes(stream, b"a running answer is not cut")

        agent.register(OURS)
        begun = time.monotonic()
        serial = daemon.wait_for("identity rotated", 60)["serial"]
        print(f"registered again, identity after {time.monotonic() - begun:.1f} s")
        daemon.wait_for("state changed", state="ready", before="denied", serving=True)
        assert _serves(daemon, traefik) == serial != server_serial(stream)
        assert _echoes(stream, b"after")
    _tell(daemon, "registered after the start, deleted, registered again")


def test_svid_rotates_twice_under_a_running_stream(
    launch: Launch, agent: Spire, folder: Path, traefik: ssl.SSLContext
) -> None:
    agent.register(OURS, ttl=SHORT_TTL)
    agent.until_issued(OURS)
    daemon = launch(more='[cert_files]\ndirectory = "certs"')
    daemon.wait_for("identity obtained")
    with connect(daemon.address, traefik) as stream:
        assert _echoes(stream, b"first")
        serials = {server_serial(stream)}
        for _ in range(2):
            serial = daemon.wait_for("identity rotated", 60)["serial"]
            assert _serves(daemon, traefik) == serial
            assert _echoes(stream, b"on and on")
            serials.add(serial)
    assert len(serials) == 3
    daemon.wait_for("certificate files published", serial=serial)
    assert not [line for line in daemon.log if line["level"] in ("warning", "error")]
    _files_are_good(folder / "certs", agent, folder)
    _tell(daemon, f"x509SVIDTTL {SHORT_TTL} s, two rotations")


def _files_are_good(certs: Path, spire: Spire, folder: Path) -> None:
    """OpenSSL's own program proves the chain to the bundle of the server, and to ours."""
    (folder / "server.pem").write_text(spire.bundle())
    assert x509.load_pem_x509_certificates(
        (certs / "svid_bundle.pem").read_bytes()
    ) == x509.load_pem_x509_certificates((folder / "server.pem").read_bytes())
    trusted, svid = certs / "svid_bundle.pem", certs / "svid.pem"
    shown = subprocess.run(
        ["openssl", "verify", "-CAfile", trusted, "-untrusted", svid, svid],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout.rstrip().endswith("OK"), shown.stderr


def test_agent_restarts(launch: Launch, agent: Spire, traefik: ssl.SSLContext) -> None:
    agent.register(OURS)
    agent.until_issued(OURS)
    daemon = launch()
    serial = daemon.wait_for("identity obtained")["serial"]
    with connect(daemon.address, traefik) as stream:
        for end in (agent.stop_agent, agent.kill_agent):
            end()
            daemon.wait_for("state changed", state="agent_lost", before="ready", serving=True)
            assert _serves(daemon, traefik) == serial, "the SVID we have is served meanwhile"
            agent.start_agent()
            begun = time.monotonic()
            # What the agent keeps in memory is gone, so it has a new SVID for us.
            serial = daemon.wait_for("identity rotated", 60)["serial"]
            daemon.wait_for("state changed", state="ready", before="agent_lost", serving=True)
            print(f"\nagent healthy again, we ready {time.monotonic() - begun:.1f} s later")
            assert _serves(daemon, traefik) == serial
            assert _echoes(stream, b"on and on")
    _tell(daemon, "agent stopped, then killed, and started again")


def test_several_entries_for_one_user(launch: Launch, agent: Spire) -> None:
    agent.register("/workload/other", hint="internal")
    agent.register("/workload/traefik")
    entry = agent.register(OURS, hint="external")
    agent.until_issued("/workload/other", "/workload/traefik", OURS)
    traefik = agent.fetched("/workload/traefik")
    hinted = launch(workload_api='hint = "internal"')
    hinted.wait_for("identity obtained", spiffe_id="spiffe://example.org/workload/other")
    assert hinted.stop() == 0

    daemon = launch(workload_api=CHOSEN)
    daemon.wait_for("identity obtained", spiffe_id=f"spiffe://example.org{OURS}")
    _serves(daemon, traefik)
    daemon.wait_for("connection closed", peer="spiffe://example.org/workload/traefik")

    agent.delete(entry)
    reason = daemon.wait_for("identity denied", 60)["reason"]
    assert reason.startswith(f"no SVID with ID spiffe://example.org{OURS}; the agent offers ")
    assert "spiffe://example.org/workload/other" in reason
    daemon.wait_for("state changed", state="denied", serving=False)
    address, _ = turned_away(daemon.address, traefik)
    daemon.wait_for("peer refused", address=address, reason="no identity to serve with")
    _tell(daemon, "three entries of one user, ours deleted")
