"""The daemon keeps certificate files for programs that read files, beside serving with them."""

from __future__ import annotations

import os
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sidecar.core.svid import serial_text
from tests.ca import Authority
from tests.client import connect, receive_exactly, server_serial
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.scenarios.conftest import Launch

FILES = '[cert_files]\ndirectory = "certs"'  # relative: below the folder of the configuration


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _read(directory: Path) -> tuple[str, bool]:
    """Read as a careful reader does: `current` once, both files below it. Serial, and a pair?"""
    generation = directory / os.readlink(directory / "current")
    leaf = x509.load_pem_x509_certificates((generation / "svid.pem").read_bytes())[0]
    key = load_pem_private_key((generation / "svid_key.pem").read_bytes(), None)
    return serial_text(leaf), key.public_key() == leaf.public_key()


def _serial(path: Path) -> str:
    return serial_text(x509.load_pem_x509_certificates(path.read_bytes())[0])


def _serves(daemon: Daemon, context: ssl.SSLContext) -> str:
    with connect(daemon.address, context) as tls:
        tls.sendall(b"hello")
        assert receive_exactly(tls, 5) == b"hello"
        return server_serial(tls)


def test_files_follow_each_rotation_and_are_what_is_served(
    launch: Launch,
    agent: AgentProcess,
    authority: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
) -> None:
    certs = folder / "certs"
    daemon = launch(more=FILES)
    daemon.wait_for("certificate files published", generation="generation-1")
    for number in range(2, 6):
        svid = authority.svid()
        agent.send(svid, authority.bundle)
        line = daemon.wait_for("certificate files published", serial=svid.serial)
        assert line["generation"] == f"generation-{number}"
        assert _read(certs) == (svid.serial, True)
        assert _serial(certs / "svid.pem") == svid.serial == _serves(daemon, traefik)
        assert _serial(certs / "svid_bundle.pem") == serial_text(authority.certificate)
    # What a model server or Traefik does with them.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        certs / "svid.pem", certs / "svid_key.pem"
    )


def test_intermediates_are_in_the_file_and_in_the_handshake(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext, folder: Path
) -> None:
    middle = authority.intermediate()
    issued = middle.sign(middle.leaf(), middle)
    svid = middle.svid()
    agent.send(type(svid)(svid.spiffe_id, issued.chain, issued.key), authority.bundle)
    daemon = launch(more=FILES)
    daemon.wait_for("certificate files published")
    chain = x509.load_pem_x509_certificates((folder / "certs/svid.pem").read_bytes())
    assert chain == list(issued.chain)
    # The client trusts the root only, so it has to be given the intermediate.
    assert _serves(daemon, traefik) == serial_text(issued.chain[0])


@pytest.mark.parametrize(
    "umask", [pytest.param(0o000, id="umask 000"), pytest.param(0o077, id="umask 077")]
)
def test_modes_do_not_depend_on_the_umask(umask: int, launch: Launch, folder: Path) -> None:
    with _umask(umask):
        daemon = launch(more=FILES + '\ncertificate_mode = "0640"\nkey_mode = "0400"')
    daemon.wait_for("certificate files published")
    generation = folder / "certs/generation-1"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in generation.iterdir()}
    assert modes == {"svid.pem": 0o640, "svid_key.pem": 0o400, "svid_bundle.pem": 0o640}
    assert stat.S_IMODE((folder / "certs").stat().st_mode) & 0o022 == 0


def test_default_modes_keep_the_key_to_its_owner(launch: Launch, folder: Path) -> None:
    daemon = launch(more=FILES)
    daemon.wait_for("certificate files published")
    generation = folder / "certs/generation-1"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in generation.iterdir()}
    assert modes == {"svid.pem": 0o644, "svid_key.pem": 0o600, "svid_bundle.pem": 0o644}
    assert stat.S_IMODE(generation.stat().st_mode) & 0o022 == 0, "others could swap the files"


def test_update_that_changes_nothing_writes_nothing(
    launch: Launch, agent: AgentProcess, authority: Authority, folder: Path
) -> None:
    certs = folder / "certs"
    same = authority.svid()
    agent.send(same, authority.bundle)
    daemon = launch(more='level = "debug"\n' + FILES)
    daemon.wait_for("certificate files published", generation="generation-1")
    before = {path.name: path.lstat() for path in [certs, *certs.rglob("*")]}
    for _ in range(3):
        agent.send(same, authority.bundle)
        daemon.wait_for("identity confirmed", serial=same.serial)
    agent.kill()
    agent.start()
    daemon.wait_for("identity confirmed", serial=same.serial)
    daemon.wait_for("state changed", state="ready", before="agent_lost")
    after = {path.name: path.lstat() for path in [certs, *certs.rglob("*")]}
    assert {name: (one.st_ino, one.st_mtime_ns) for name, one in after.items()} == {
        name: (one.st_ino, one.st_mtime_ns) for name, one in before.items()
    }
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    daemon.wait_for("certificate files published", generation="generation-2", serial=svid.serial)


def test_bundle_that_changes_alone_is_published(
    launch: Launch, agent: AgentProcess, authority: Authority, folder: Path
) -> None:
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    daemon = launch(more=FILES)
    daemon.wait_for("certificate files published", generation="generation-1")
    both = type(authority.bundle)(
        authority.trust_domain, (authority.certificate, Authority("example.org").certificate)
    )
    agent.send(svid, both)
    daemon.wait_for("certificate files published", generation="generation-2", serial=svid.serial)
    bundle = x509.load_pem_x509_certificates((folder / "certs/svid_bundle.pem").read_bytes())
    assert tuple(bundle) == both.authorities


def test_reader_never_sees_a_key_of_another_certificate(
    launch: Launch, agent: AgentProcess, authority: Authority, folder: Path
) -> None:
    certs = folder / "certs"
    daemon = launch(more=FILES)
    daemon.wait_for("certificate files published")
    stop = threading.Event()
    seen: list[tuple[str, bool]] = []
    faults: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                seen.append(_read(certs))
        except BaseException as exc:
            faults.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        svid = authority.svid()
        agent.send(svid, authority.bundle)
        daemon.wait_for("identity rotated", serial=svid.serial)
    daemon.wait_for("certificate files published", serial=svid.serial)
    stop.set()
    reader.join(60)
    assert not faults
    assert all(matches for _, matches in seen)
    assert len({serial for serial, _ in seen}) > 5


def test_folder_that_cannot_be_written_keeps_us_serving_and_heals(
    launch: Launch,
    agent: AgentProcess,
    authority: Authority,
    traefik: ssl.SSLContext,
    folder: Path,
) -> None:
    certs, aside = folder / "certs", folder / "aside"
    daemon = launch(more=FILES)
    first = daemon.wait_for("certificate files published", generation="generation-1")["serial"]
    # A file where the folder was: permissions would not stop a test that runs as root.
    certs.rename(aside)
    certs.write_text("in the way")
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    line = daemon.wait_for("certificate files not published")
    assert line["level"] == "error"
    assert str(certs) in line["reason"]
    assert line["hint"]
    assert line["retry_seconds"] > 0
    assert _serves(daemon, traefik) == svid.serial, "the disk decides nothing about serving"
    assert _read(aside) == (first, True), "what was published stays"
    newest = authority.svid()
    agent.send(newest, authority.bundle)
    daemon.wait_for("identity rotated", serial=newest.serial)
    certs.unlink()
    aside.rename(certs)
    line = daemon.wait_for("certificate files published")
    assert line["serial"] == newest.serial
    assert _read(certs) == (newest.serial, True)


def test_folder_that_was_never_writable_does_not_keep_us_from_serving(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext, folder: Path
) -> None:
    (folder / "file").write_text("in the way")
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    daemon = launch(more='[cert_files]\ndirectory = "file/certs"')
    daemon.wait_for("certificate files not published")
    assert _serves(daemon, traefik) == svid.serial
    (folder / "file").unlink()
    # What was no folder at the start is out of the sandbox; a restart mends it.
    line = daemon.wait_for("certificate files not published")
    if "other files" in daemon.lines("confined")[0]["forbidden"]:
        assert "Permission denied" in line["reason"]
        assert "[sandbox]: restart" in line["hint"]
        assert daemon.stop() == 0
        daemon = launch(more='[cert_files]\ndirectory = "file/certs"')
    daemon.wait_for("certificate files published", serial=svid.serial)
    assert _read(folder / "file/certs") == (svid.serial, True)


def test_folder_in_which_others_could_swap_files_is_refused(launch: Launch, folder: Path) -> None:
    certs = folder / "certs"
    certs.mkdir()
    certs.chmod(0o777)
    daemon = launch(more=FILES)
    line = daemon.wait_for("certificate files not published")
    assert "mode 0777" in line["reason"]
    assert not list(certs.iterdir())
    certs.chmod(0o755)
    daemon.wait_for("certificate files published")


def test_files_stay_when_the_agent_denies(
    launch: Launch, agent: AgentProcess, folder: Path
) -> None:
    certs = folder / "certs"
    daemon = launch(more=FILES, workload_api="denied_grace_seconds = 0")
    serial = daemon.wait_for("certificate files published")["serial"]
    agent.deny()
    daemon.wait_for("state changed", state="denied", serving=False)
    assert _read(certs) == (serial, True)
    assert daemon.stop() == 0
    assert _read(certs) == (serial, True)


def test_restart_finds_its_own_files_good_and_leaves_them(
    launch: Launch, agent: AgentProcess, authority: Authority, folder: Path
) -> None:
    certs = folder / "certs"
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    daemon = launch(more=FILES)
    daemon.wait_for("certificate files published", generation="generation-1")
    daemon.process.kill()
    daemon.wait()
    # What a process leaves behind that died while it wrote.
    (certs / "generation-2").mkdir(mode=0o700)
    (certs / "generation-2/svid.pem").write_text("half")
    again = launch(more=FILES)
    assert again.address
    svid = authority.svid()
    agent.send(svid, authority.bundle)
    again.wait_for("certificate files published", serial=svid.serial)
    assert _read(certs) == (svid.serial, True)
    assert "half" not in [path.read_text() for path in certs.glob("generation-*/svid.pem")]
