"""`doctor` beside a real SPIRE agent and a real Ollama, in the words that those use.

SPIRE_BIN is a folder with `spire-server` and `spire-agent`, OLLAMA_BIN the program.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio

from sidecar.core.diagnosis.agent import AgentConf, Attestation
from sidecar.core.diagnosis.finding import Finding, Verdict
from sidecar.operations.doctor.agent import read_agent_conf, read_attestation
from sidecar.operations.doctor.examination import examine
from sidecar.operations.doctor.subject import Request
from tests.ollama import Ollama
from tests.scenarios.doctor_host import lan_address
from tests.spire import Spire

OURS = "/workload/model-server"
SPIRE_BIN, OLLAMA_BIN = os.environ.get("SPIRE_BIN"), os.environ.get("OLLAMA_BIN")
needs_spire = pytest.mark.skipif(not SPIRE_BIN, reason="SPIRE_BIN is not set")
needs_ollama = pytest.mark.skipif(not OLLAMA_BIN, reason="OLLAMA_BIN is not set")


@pytest.fixture
def spire() -> Iterator[Spire]:
    with tempfile.TemporaryDirectory(prefix="sp-") as name:
        spire = Spire(Path(SPIRE_BIN or "").resolve(), Path(name))
        try:
            spire.start()
            yield spire
        finally:
            spire.stop()


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Ollama]:
    ollama = Ollama(Path(OLLAMA_BIN or "").resolve(), tmp_path)
    try:
        ollama.start()
        yield ollama
    finally:
        ollama.stop()


def examined(folder: Path, agent: Path, backend: str, host: str = "") -> dict[str, Finding]:
    """What doctor finds; there is no daemon, and the service user is whoever runs this."""
    config = folder / "sidecar.toml"
    config.write_text(
        f'[workload_api]\nsocket = "unix:{agent}"\nspiffe_id = "spiffe://example.org{OURS}"\n'
        f'[listener]\naddress = "127.0.0.1:0"\n[backend]\naddress = "{backend}"\nhost = "{host}"\n'
        '[policy]\nfile = "policy.toml"\n'
    )
    (folder / "policy.toml").write_text(
        '[[allow]]\nname = "traefik"\npeers = ["spiffe://example.org/workload/traefik"]\n'
        'endpoints = ["preset:ollama", "GET /api/nonsense"]\n'
    )
    request = Request(config, "0.1.0")
    return {one.name: one for one in trio.run(partial(examine, request))}


def verdicts(found: dict[str, Finding], group: str) -> dict[str, Verdict]:
    return {name: one.verdict for name, one in found.items() if one.group == group}


@needs_spire
def test_spire_before_and_after_the_registration(spire: Spire, folder: Path) -> None:
    found = examined(folder, spire.path, "127.0.0.1:9")
    assert found["agent.process"].seen.startswith("spire-agent (pid ")
    assert found["agent.workload_api"].verdict is Verdict.OK
    assert found["agent.registration"].verdict is Verdict.FAIL
    assert f"unix:uid:{os.getuid()}" in found["agent.registration"].seen
    spire.register(OURS)
    spire.until_issued(OURS)
    found = examined(folder, spire.path, "127.0.0.1:9")
    failing = {name for name, one in found.items() if one.verdict is Verdict.FAIL}
    assert not any(name.startswith(("agent.", "identity.")) for name in failing), found
    assert found["identity.chain"].verdict is Verdict.OK
    assert found["identity.clock"].verdict is Verdict.OK


@needs_spire
def test_what_a_real_agent_keeps_of_itself_is_read(spire: Spire) -> None:
    conf = read_agent_conf(spire.path.parent / "agent.conf")
    assert isinstance(conf, AgentConf)
    assert conf.join_token
    assert conf.bootstrap == "trust_bundle_path"
    own = read_attestation(conf)
    assert isinstance(own, Attestation)
    assert own.not_after is not None
    assert own.not_after > datetime.now(UTC)


@needs_spire
def test_an_agent_that_is_killed_leaves_a_socket_that_nobody_serves(
    spire: Spire, folder: Path
) -> None:
    spire.kill_agent()
    found = examined(folder, spire.path, "127.0.0.1:9")
    assert found["agent.listening"].verdict is Verdict.FAIL
    assert found["agent.registration"].verdict is not Verdict.FAIL


@needs_ollama
def test_ollama_as_it_comes_is_content(ollama: Ollama, folder: Path) -> None:
    found = examined(folder, folder / "agent.sock", ollama.address)
    assert found["backend.product"].seen.startswith("ollama ")
    assert "403" in found["backend.host"].seen
    assert verdicts(found, "backend") == {
        "backend.listening": Verdict.OK,
        "backend.socket_mode": Verdict.SKIPPED,
        "backend.loopback_only": Verdict.OK,
        "backend.health": Verdict.OK,
        "backend.host": Verdict.OK,
        "backend.origin": Verdict.OK,
        "backend.product": Verdict.OK,
        "backend.endpoints": Verdict.WARN,
        "backend.streaming": Verdict.SKIPPED,
    }
    # Its own route table, asked for without doing anything: all of the preset, not the nonsense.
    assert found["backend.endpoints"].seen.endswith("does not have GET /api/nonsense")
    assert {one.method for one in ollama.arrived()} == {"GET", "PATCH"}


@needs_ollama
def test_ollama_refuses_the_peers_host(ollama: Ollama, folder: Path) -> None:
    found = examined(folder, folder / "agent.sock", ollama.address, host="keep")
    assert found["backend.host"].verdict is Verdict.FAIL
    assert found["backend.health"].verdict is Verdict.OK


@needs_ollama
def test_ollama_on_every_address_is_exposed(
    ollama: Ollama, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lan_address()
    address = ollama.address
    ollama.stop()
    monkeypatch.setattr(ollama, "address", f"0.0.0.0:{ollama.port}")
    ollama.start()
    found = examined(folder, folder / "agent.sock", address)
    assert found["backend.loopback_only"].verdict is Verdict.FAIL
    assert f"OLLAMA_HOST=127.0.0.1:{ollama.port}" in found["backend.loopback_only"].remedy
    socket.create_connection((lan_address(), ollama.port), 10).close()
