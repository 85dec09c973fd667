"""The real daemon on files that something else writes: a volume, an editor, another daemon."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.adapters.test_sandbox import needs_landlock
from tests.ca import Authority
from tests.client import client_context, connect, receive_exactly, server_serial
from tests.conftest import TRAEFIK
from tests.daemon import Daemon
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.identity_writers import (
    BUNDLE,
    CERTIFICATE,
    KEY,
    Chain,
    Contents,
    Generations,
    Kubernetes,
    OneByOne,
    ReplacedFolder,
    SwitchedFolder,
    Writer,
    pem,
    rename_over,
    write_in_place,
)
from tests.scenarios.peer import turned_away

Serve = Callable[..., Daemon]
# The system tells of no change, and this is all there is.
OFTEN = 0.2
TROUBLE = ("warning", "error", "critical")


@pytest.fixture
def serve(folder: Path, backend: EchoBackend) -> Iterator[Serve]:
    """Start a daemon on the files at a place; it ends well, whatever is done to the files."""
    daemons: list[Daemon] = []

    def start(
        place: Path, poll_seconds: float = 3600, federated: str = "", more: str = ""
    ) -> Daemon:
        (folder / "policy.toml").write_text(
            f'[[allow]]\nname = "clients"\npeers = ["spiffe://example.org{TRAEFIK}"]\n'
        )
        config = folder / f"server-{len(daemons)}.toml"
        config.write_text(
            f"""
[identity_files]
certificate = "{place / CERTIFICATE}"
private_key = "{place / KEY}"
bundle = "{place / BUNDLE}"
poll_seconds = {poll_seconds}
{federated}
[listener]
address = "127.0.0.1:0"
[backend]
address = "{backend.address}"
mode = "stream"
[policy]
file = "policy.toml"
[log]
format = "json"
level = "debug"
{more}
"""
        )
        daemons.append(Daemon(config))
        return daemons[-1]

    yield start
    for daemon in daemons:
        assert daemon.stop() == 0
        output = "".join(daemon.raw)
        assert "Traceback" not in output
        assert "PRIVATE KEY" not in output


def served_serial(daemon: Daemon, context: ssl.SSLContext) -> str:
    """Talk through the daemon; gives the serial that it presented."""
    with connect(daemon.address, context) as tls:
        tls.sendall(b"hello")
        assert receive_exactly(tls, 5) == b"hello"
        return server_serial(tls)


def until_served(daemon: Daemon, context: ssl.SSLContext, serial: str, *before: str) -> None:
    """Connect without a pause until that serial is presented; until then those of before are."""
    deadline = time.monotonic() + 30
    while (found := served_serial(daemon, context)) != serial:
        assert found in before
        assert time.monotonic() < deadline, f"{serial} is not served"


def rotates(daemon: Daemon, writer: Writer, authority: Authority, peer: ssl.SSLContext) -> None:
    for _ in range(3):
        contents = Contents.new(authority)
        writer.put(contents)
        daemon.wait_for("identity rotated", serial=contents.serial)
        assert served_serial(daemon, peer) == contents.serial


def _one_by_one(place: Path) -> Writer:
    return OneByOne(place, write_in_place)


def trouble(daemon: Daemon) -> list[str]:
    """What was logged above INFO."""
    return [line["event"] for line in daemon.log if line["level"] in TROUBLE]


def test_volume_of_kubernetes_is_followed_without_a_word(
    folder: Path, serve: Serve, authority: Authority, traefik: ssl.SSLContext
) -> None:
    volume = Kubernetes(folder / "volume")
    before = Contents.new(authority)
    volume.put(before)
    daemon = serve(volume.place)
    assert served_serial(daemon, traefik) == before.serial
    for _ in range(20):
        following = Contents.new(authority)
        volume.put(following)
        until_served(daemon, traefik, following.serial, before.serial)
        daemon.wait_for("identity rotated", serial=following.serial)
        before = following
    assert len(daemon.lines("identity rotated")) == 20
    assert trouble(daemon) == []


def test_connection_of_before_goes_on_when_the_files_change(
    folder: Path, serve: Serve, authority: Authority, traefik: ssl.SSLContext
) -> None:
    writer = OneByOne(folder / "files", write_in_place)
    contents = [Contents.new(authority) for _ in range(2)]
    writer.put(contents[0])
    daemon = serve(writer.place)
    with connect(daemon.address, traefik) as old:
        writer.put(contents[1])
        until_served(daemon, traefik, contents[1].serial, contents[0].serial)
        old.sendall(b"still here")
        assert receive_exactly(old, 10) == b"still here"
        assert server_serial(old) == contents[0].serial


def test_torn_pair_leaves_the_identity_and_is_told_once(
    folder: Path, serve: Serve, authority: Authority, traefik: ssl.SSLContext
) -> None:
    writer = OneByOne(folder / "files", rename_over)
    contents, following = Contents.new(authority), Contents.new(authority)
    writer.put(contents)
    daemon = serve(writer.place, OFTEN)
    assert served_serial(daemon, traefik) == contents.serial
    rename_over(writer.place / KEY, following.of(KEY))
    line = daemon.wait_for("update discarded", kept=True)
    assert "belong together" in line["reason"]
    assert served_serial(daemon, traefik) == contents.serial
    rename_over(writer.place / CERTIFICATE, following.of(CERTIFICATE))
    daemon.wait_for("identity rotated", serial=following.serial)
    assert served_serial(daemon, traefik) == following.serial
    assert trouble(daemon) == ["update discarded"]


def test_files_that_vanish_leave_the_identity_and_are_told_once(
    folder: Path, serve: Serve, authority: Authority, traefik: ssl.SSLContext
) -> None:
    writer = OneByOne(folder / "files", rename_over)
    contents, following = Contents.new(authority), Contents.new(authority)
    writer.put(contents)
    daemon = serve(writer.place, OFTEN)
    assert served_serial(daemon, traefik) == contents.serial
    shutil.rmtree(writer.place)
    line = daemon.wait_for("identity files lost", serving=True)
    assert "No such file" in line["reason"]
    daemon.wait_for("state changed", state="agent_lost")
    assert served_serial(daemon, traefik) == contents.serial
    writer.put(following)
    daemon.wait_for("identity rotated", serial=following.serial)
    assert served_serial(daemon, traefik) == following.serial
    assert trouble(daemon) == ["identity files lost", "state changed"]


def test_authority_that_is_gone_from_the_bundle_is_refused(
    folder: Path, serve: Serve, authority: Authority, traefik: ssl.SSLContext
) -> None:
    """All comes new: authority, pair and bundle, one file after the other."""
    writer, newer = OneByOne(folder / "files", rename_over), Authority("example.org")
    writer.put(Contents.new(authority))
    daemon = serve(writer.place)
    served_serial(daemon, traefik)
    following = Contents.new(newer)
    writer.put(following)
    daemon.wait_for("identity rotated", serial=following.serial)
    admitted = client_context(newer, newer.sign(newer.leaf(TRAEFIK)), folder)
    assert served_serial(daemon, admitted) == following.serial
    # Of the same name, signed by who is no authority any more; it takes ours for good.
    stale = client_context(newer, authority.sign(authority.leaf(TRAEFIK)), folder)
    turned_away(daemon.address, stale)
    daemon.wait_for("peer refused")
    assert trouble(daemon) == ["peer refused"]


def test_federated_file_that_is_torn_for_a_moment_costs_no_connection(
    folder: Path, serve: Serve, authority: Authority, foreign: Authority, traefik: ssl.SSLContext
) -> None:
    writer, partner = OneByOne(folder / "files", rename_over), folder / "partner.pem"
    contents, whole = Contents.new(authority), pem(foreign.certificate)
    writer.put(contents)
    partner.write_bytes(whole)
    daemon = serve(writer.place, federated=f'federated_bundles = {{ "other.org" = "{partner}" }}')
    assert served_serial(daemon, traefik) == contents.serial
    for _ in range(20):
        with partner.open("wb", buffering=0) as file:
            file.write(whole[:100])
            file.write(whole[100:])
    following = Contents.new(authority)
    writer.put(following)
    daemon.wait_for("identity rotated", serial=following.serial, trust_domains=2)
    assert trouble(daemon) == []


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that has nothing to do with the one of the configuration."""
    with tempfile.TemporaryDirectory(prefix="sc-out-") as name:
        yield Path(name)


# What the sandbox allows at the start is all that there will be.
KINDS = [Kubernetes, Generations, SwitchedFolder, Chain, _one_by_one]
NO_SANDBOX = "[sandbox]\nenabled = false"


@pytest.mark.parametrize("kind", KINDS)
def test_files_outside_of_the_configurations_folder_are_followed(
    outside: Path,
    serve: Serve,
    authority: Authority,
    traefik: ssl.SSLContext,
    kind: Callable[[Path], Writer],
) -> None:
    """Also where other folders than those of the start are read, however we are confined."""
    place = outside / "secrets/identity"
    place.mkdir(parents=True)
    writer = kind(place)
    writer.put(Contents.new(authority))
    daemon = serve(writer.place, OFTEN)
    daemon.wait_for("identity obtained")
    rotates(daemon, writer, authority, traefik)
    writer.close()
    assert trouble(daemon) == []


def test_folders_that_come_later_or_are_replaced_are_followed_without_the_sandbox(
    outside: Path, serve: Serve, authority: Authority, traefik: ssl.SSLContext
) -> None:
    place = outside / "secrets/identity"
    daemon = serve(place, OFTEN, more=NO_SANDBOX)
    daemon.wait_for("identity files lost")
    place.mkdir(parents=True)
    writer = ReplacedFolder(place)
    writer.put(Contents.new(authority))
    daemon.wait_for("identity obtained")
    rotates(daemon, writer, authority, traefik)
    assert trouble(daemon) == ["identity files lost"]


@needs_landlock(1)
@pytest.mark.parametrize("late", [False, True], ids=["replaced", "late"])
def test_folder_that_the_sandbox_forbids_is_told_as_that(
    outside: Path, serve: Serve, authority: Authority, traefik: ssl.SSLContext, late: bool
) -> None:
    place = outside / "secrets/identity"
    writer, contents = ReplacedFolder(place), Contents.new(authority)
    if not late:
        place.mkdir(parents=True)
        writer.put(contents)
    daemon = serve(place, OFTEN)
    if late:
        told = daemon.wait_for("path not allowed by the sandbox")
        assert told["reason"] == f"{place}: No such file or directory"
        daemon.wait_for("identity files lost")
        place.mkdir(parents=True)
    else:
        daemon.wait_for("identity obtained")
    writer.put(Contents.new(authority))
    told = daemon.wait_for("identity files lost")
    assert told["reason"].startswith(f"{place / CERTIFICATE}: forbidden by [sandbox]")
    if not late:
        assert served_serial(daemon, traefik) == contents.serial


def helper(folder: Path, agent: AgentProcess) -> Daemon:
    """A daemon that writes what the agent issues."""
    config = folder / "helper.toml"
    config.write_text(
        f"""
[workload_api]
socket = "unix:{agent.path}"
[cert_files]
directory = "certs"
layout = "kubernetes"
[log]
format = "json"
"""
    )
    return Daemon(config)


def test_writer_that_is_killed_again_and_again_is_not_noticed(
    folder: Path,
    serve: Serve,
    agent: AgentProcess,
    authority: Authority,
    traefik: ssl.SSLContext,
) -> None:
    writing = helper(folder, agent)
    writing.wait_for("certificate files published")
    daemon = serve(folder / "certs")
    before = served_serial(daemon, traefik)
    for number in range(6):
        svids = [authority.svid() for _ in range(3)]
        for svid in svids:
            agent.send(svid, authority.bundle)
        if number % 2:
            writing.wait_for("certificate files published", serial=svids[-1].serial)
        # Otherwise it dies in the middle of whatever it is about.
        writing.process.kill()
        assert writing.wait() == -signal.SIGKILL
        assert served_serial(daemon, traefik) in {before, *(svid.serial for svid in svids)}
        writing = helper(folder, agent)
        last = svids[-1].serial
        until_served(daemon, traefik, last, before, *(svid.serial for svid in svids))
        daemon.wait_for("identity rotated", serial=last)
        before = last
    writing.wait_for("starting")  # from then on it knows signals
    assert writing.stop() == 0
    assert trouble(daemon) == []


# Without word of changes.


@pytest.fixture
def python_without_watches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have daemons run where the limit of inotify is zero: a user namespace has its own."""
    python = folder / "python"
    limit = "/proc/sys/user/max_inotify_instances"
    inside = f'echo 0 > {limit} && exec "{sys.executable}" "$@"'
    python.write_text(
        f"#!/bin/sh\nexec unshare --user --map-root-user sh -c '{inside}' sh \"$@\"\n"
    )
    python.chmod(0o755)
    try:
        tried = subprocess.run([python, "-c", ""], capture_output=True, check=False)
    except OSError:
        pytest.skip("no shell script can be run from here")
    if tried.returncode:
        pytest.skip(f"no user namespace: {tried.stderr.decode().strip()}")
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.usefixtures("python_without_watches")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces")
@pytest.mark.parametrize("kind", [Kubernetes, _one_by_one])
def test_files_that_cannot_be_watched_are_looked_at(
    folder: Path,
    serve: Serve,
    authority: Authority,
    traefik: ssl.SSLContext,
    kind: Callable[[Path], Writer],
) -> None:
    writer = kind(folder / "files")
    writer.put(Contents.new(authority))
    daemon = serve(writer.place, OFTEN)
    line = daemon.wait_for("identity files not watched")
    assert line["looked_at_seconds"] == OFTEN
    rotates(daemon, writer, authority, traefik)
    assert trouble(daemon).count("identity files not watched") == 1
    assert "identity files lost" not in trouble(daemon)
    assert "update discarded" not in trouble(daemon)


def test_files_in_folders_that_are_not_there_yet_are_found_by_looking(
    folder: Path, serve: Serve, authority: Authority, traefik: ssl.SSLContext
) -> None:
    """Nothing can be watched of them: the folder above is missing as well, and the one above it."""
    place = folder / "mnt/remote/identity"
    daemon = serve(place, OFTEN)
    line = daemon.wait_for("identity files lost", serving=False)
    assert str(place) in line["reason"]
    os.makedirs(place.parent)
    writer = Kubernetes(place)
    contents = Contents.new(authority)
    writer.put(contents)
    assert served_serial(daemon, traefik) == contents.serial
    rotates(daemon, writer, authority, traefik)
    assert trouble(daemon) == ["identity files lost"]
