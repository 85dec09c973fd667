"""A disk that hangs, and files that are no files: streams go on, and what is wrong is told."""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import Callable
from pathlib import Path

from sidecar.demo.jwt_issuer import JwtIssuer
from tests.adapters.test_sandbox import needs_landlock
from tests.ca import Authority
from tests.client import connect, receive_exactly
from tests.conftest import TRAEFIK
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.hung_mount import hung_mount
from tests.impatient_daemon import interpreter
from tests.scenarios.admin_visitor import AdminVisitor, admin_table
from tests.scenarios.conftest import Launch

REFUSED = "policy refused, the old one stays"
ALLOW = f'[[allow]]\nname = "clients"\npeers = ["spiffe://example.org{TRAEFIK}"]\n'


def _rename_over(path: Path, make: Callable[[Path], object]) -> None:
    new = path.with_name("new")
    make(new)
    new.rename(path)


def test_what_is_no_file_in_the_place_of_the_policy_stops_no_stream(
    launch: Launch, folder: Path, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    policy = folder / "policy.toml"
    with connect(daemon.address, traefik) as tls:

        def refused(make: Callable[[Path], object], why: str) -> None:
            _rename_over(policy, make)
            # Asked twice: by the watch and by a signal, as an operator would.
            daemon.process.send_signal(signal.SIGHUP)
            (problem,) = daemon.wait_for(REFUSED)["problems"]
            assert why in problem
            assert "policy.toml" in problem
            tls.sendall(b"hello")
            assert receive_exactly(tls, 5) == b"hello"

        refused(os.mkfifo, "it is not a regular file but a named pipe")
        refused(lambda new: new.symlink_to("/dev/zero"), "it is not a regular file but a device")
        refused(lambda new: _sparse(new, 5_000_000), "it has more than 4194304 bytes")
        refused(lambda new: new.write_bytes(b"\xff"), "utf-8")
        policy.unlink()
        refused(Path.mkdir, "Is a directory")
        policy.rmdir()
        _rename_over(policy, lambda new: new.write_text(ALLOW))
        daemon.wait_for("policy loaded")


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@needs_landlock(1)
def test_policy_that_becomes_a_link_out_of_the_sandbox_is_refused_as_that(
    launch: Launch, folder: Path, tmp_path: Path, traefik: ssl.SSLContext
) -> None:
    foreign = tmp_path / "policy.toml"
    foreign.write_text(ALLOW.replace(TRAEFIK, "/**"))
    daemon = launch()
    policy = folder / "policy.toml"
    with connect(daemon.address, traefik) as tls:
        _rename_over(policy, lambda new: new.symlink_to(foreign))
        (problem,) = daemon.wait_for(REFUSED)["problems"]
        assert "forbidden by [sandbox]" in problem
        tls.sendall(b"hello")
        assert receive_exactly(tls, 5) == b"hello"
        # A link within the folders of the start is another matter.
        (folder / "other.toml").write_text(ALLOW)
        _rename_over(policy, lambda new: new.symlink_to("other.toml"))
        daemon.wait_for("policy loaded")
    assert not any(line["event"] == "policy loaded" for line in daemon.log[:-1])


def test_policy_on_a_mount_that_hangs_stops_no_stream(
    folder: Path,
    agent: AgentProcess,
    authority: Authority,
    backend: EchoBackend,
    traefik: ssl.SSLContext,
) -> None:
    agent.send(authority.svid(), authority.bundle)
    config = write_config(folder, agent.path, backend.address)
    place = folder / "mount"
    place.mkdir()
    (place / "policy.toml").write_text(ALLOW)
    config.write_text(config.read_text().replace('"policy.toml"', '"mount/policy.toml"'))
    daemon = Daemon(config, python=interpreter(folder))
    with connect(daemon.address, traefik) as tls:
        with hung_mount(place):
            for _ in range(3):
                daemon.process.send_signal(signal.SIGHUP)
                tls.sendall(b"hello")
                assert receive_exactly(tls, 5) == b"hello"
            (problem,) = daemon.wait_for(REFUSED, 40)["problems"]
            assert "the disk did not answer within 1 s" in problem
            threads = _threads(daemon)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for(REFUSED, 40)
            assert _threads(daemon) <= threads + 1
            tls.sendall(b"hello")
            assert receive_exactly(tls, 5) == b"hello"
        _rename_over(place / "policy.toml", lambda new: new.write_text(ALLOW + "# new\n"))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("policy loaded", 40)
    assert daemon.stop() == 0


def _threads(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/task"))


FILES = """
[workload_api]
socket = "unix:{agent}"
[cert_files]
directory = "mount/certs"
jwt_bundle = "jwks.json"
[[jwt_svid]]
audience = "vault"
file = "vault.jwt"
[log]
format = "json"
"""


def test_certificate_files_on_a_disk_that_hangs_are_not_ready_until_it_answers(
    folder: Path, agent: AgentProcess, authority: Authority
) -> None:
    issuer = JwtIssuer(7)
    before, after = authority.svid(), authority.svid()
    bundles = {"spiffe://example.org": issuer.jwks()}
    agent.send(before, authority.bundle)
    agent.issue_jwt_svids(issuer, str(before.spiffe_id))
    agent.send_jwt_bundles(bundles)
    config = folder / "sidecar.toml"
    config.write_text(FILES.format(agent=agent.path) + admin_table(folder))
    place, visitor = folder / "mount", AdminVisitor(folder)
    place.mkdir()
    daemon = Daemon(config, python=interpreter(folder))
    visitor.until_it_is_there()
    visitor.until(lambda health: health.ready)
    with hung_mount(place):
        agent.send(after, authority.bundle)
        health = visitor.until(lambda health: "files_stale" in health.reasons)
        assert not health.ready
        assert before.serial in health.texts["files_stale"]
        assert after.serial in health.texts["files_stale"]
        # The token and the bundle fail by themselves, and wait for the same thread.
        daemon.process.send_signal(signal.SIGUSR1)
        agent.send_jwt_bundles({**bundles, "spiffe://other.org": JwtIssuer(8).jwks()})
        words = {"files_failed", "jwt_svid_failed", "jwt_bundle_failed"}
        health = visitor.until(lambda health: words <= health.reasons | health.warnings)
        assert all("did not answer within 1 s" in health.texts[one] for one in words)
        assert not health.ready
        threads = _threads(daemon)
        daemon.wait_for("certificate files not published", 40)
        daemon.wait_for("certificate files not published", 40)
        assert _threads(daemon) <= threads + 1
    visitor.until(lambda health: health.ready)
    assert visitor.status()["status"]["files"]["serial"] == after.serial
    assert daemon.stop() == 0
