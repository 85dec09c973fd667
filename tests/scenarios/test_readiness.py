"""`/readyz` tells the truth in every state of a daemon's life, and names the reason.

How many seconds after each event it does: `pytest -s` on this file.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.client import client_context
from tests.conftest import TRAEFIK
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.http_backend import Call, HttpBackend
from tests.http_client import EVERYTHING, HttpPeer, request
from tests.scenarios.admin_visitor import AdminVisitor, Health, admin_table

SHORT = timedelta(seconds=4)


class Life:
    """A daemon, what happens to it, and what it says of itself."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder, self.authority = folder, authority
        self.agent = AgentProcess(folder / "agent.sock")
        self.visitor = AdminVisitor(folder)
        self.took: list[str] = []

    def issue(self, life: timedelta = timedelta(hours=1)) -> float:
        """Have the agent issue an SVID; gives the time of its end on the monotonic clock."""
        svid = self.authority.svid(not_after=life)
        self.agent.send(svid, self.authority.bundle)
        return time.monotonic() + svid.not_after.timestamp() - time.time()

    def becomes(
        self, *reasons: str, since: float, event: str, warnings: tuple[str, ...] = ()
    ) -> Health:
        """Wait until just these are the reasons and warnings; note the seconds since the event."""

        def fits(health: Health) -> bool:
            return (health.reasons, health.warnings) == (frozenset(reasons), frozenset(warnings))

        health = self.visitor.until(fits)
        shown = ", ".join(reasons) or "ready"
        more = f" (warning: {', '.join(warnings)})" if warnings else ""
        self.took.append(f"{event}: {shown}{more} after {time.monotonic() - since:.3f} s")
        # Code and verdict say the same as the reasons, and each has words.
        assert (health.status, health.ready) == ((503, False) if reasons else (200, True))
        assert all(health.texts.values())
        return health

    def replace(self, name: str, text: str) -> float:
        """Replace a file as an editor does; gives the time before."""
        before, new = time.monotonic(), self.folder / "new"
        new.write_text(text)
        new.rename(self.folder / name)
        return before

    def report(self) -> None:
        print("", *self.took, sep="\n  ")


@pytest.fixture
def life(folder: Path, authority: Authority) -> Iterator[Life]:
    """A life that begins without an agent."""
    life = Life(folder, authority)
    yield life
    life.report()
    if life.agent.runs():
        life.agent.stop()


@contextmanager
def running(config: Path) -> Iterator[Daemon]:
    """Run a daemon that is to be ended by the test."""
    daemon = Daemon(config)
    try:
        yield daemon
    finally:
        if daemon.process.returncode is None:
            daemon.stop()
    assert "Traceback" not in "".join(daemon.raw)


def now(step: Callable[[], object]) -> float:
    """Do it; gives the time before."""
    before = time.monotonic()
    step()
    return before


def test_every_state_of_a_life_that_serves(life: Life) -> None:
    model = life.folder / "model.sock"
    backend = HttpBackend(model)
    config = write_config(
        life.folder, life.agent.path, backend.address, mode="http", more=admin_table(life.folder)
    )
    policy = (life.folder / "policy.toml").read_text() + EVERYTHING
    (life.folder / "policy.toml").write_text(policy)
    with running(config) as daemon:
        life.visitor.until_it_is_there()
        begun = time.monotonic()
        life.becomes("starting", since=begun, event="start without agent")

        life.issue()
        life.agent.start()  # a process that takes its time
        began = time.monotonic()
        life.becomes(since=began, event="the agent starts")

        lost = now(life.agent.kill)
        life.becomes(since=lost, event="the agent is killed", warnings=("agent_lost",))

        life.agent.start()  # a process that takes its time
        began = time.monotonic()
        life.becomes(since=began, event="the agent is back")

        denied = now(life.agent.deny)
        life.becomes("denied", since=denied, event="the entry is deleted")

        granted = now(life.issue)
        life.becomes(since=granted, event="the entry is back")

        given = time.monotonic()
        end = life.issue(SHORT)
        # Most of its life is over when it comes.
        life.becomes(since=given, event="an SVID that soon ends", warnings=("renewal_overdue",))
        life.becomes("expired", since=end, event="the SVID expires")

        renewed = now(life.issue)
        life.becomes(since=renewed, event="the SVID is renewed")

        down = now(backend.close)
        life.becomes("backend_down", since=down, event="the backend ends")
        model.unlink()
        with HttpBackend(model) as backend:
            life.becomes(since=time.monotonic(), event="the backend is back")

            before = time.monotonic()
            backend.routes["/api/version"] = lambda call: call.answer(500)
            life.becomes("backend_down", since=before, event="its health path answers 500")
            del backend.routes["/api/version"]
            life.becomes(since=time.monotonic(), event="its health path answers 200")

            bad = life.replace("policy.toml", "nonsense")
            life.becomes(since=bad, event="a bad policy", warnings=("bad_policy",))
            gone = now((life.folder / "policy.toml").unlink)
            life.becomes(since=gone, event="no policy file", warnings=("bad_policy",))
            good = life.replace("policy.toml", policy)
            life.becomes(since=good, event="a good policy again")

            _drain(life, daemon, backend)


def _drain(life: Life, daemon: Daemon, backend: HttpBackend) -> None:
    """Draining is told as long as an answer runs."""
    issued = life.authority.sign(life.authority.leaf(TRAEFIK))
    with HttpPeer(daemon.address, client_context(life.authority, issued, life.folder)) as peer:
        peer.sendall(request("GET", "/held/long"))
        while (call := backend.next_call()).path != "/held/long":
            pass
        call.begin_stream()
        peer.until(b"\r\n\r\n")
        told = now(daemon.process.terminate)
        life.becomes("draining", since=told, event="SIGTERM")
        assert life.visitor.get("/livez")[0] == 200, "it lives until it has drained"
        call.end_stream()
        call.release()
        assert peer.until(b"0\r\n\r\n").endswith(b"0\r\n\r\n")
    assert daemon.wait() == 0


def test_every_state_of_a_life_that_keeps_files(life: Life) -> None:
    config = life.folder / "sidecar.toml"
    config.write_text(
        f"""
[workload_api]
socket = "unix:{life.agent.path}"
[cert_files]
directory = "certs"
[log]
format = "json"
{admin_table(life.folder)}"""
    )
    certs, aside = life.folder / "certs", life.folder / "aside"
    certs.write_text("something that is in the way")
    with running(config) as daemon:
        life.visitor.until_it_is_there()
        begun = time.monotonic()
        life.becomes("starting", "files_missing", since=begun, event="start without agent")

        life.issue()
        life.agent.start()  # a process that takes its time
        began = time.monotonic()
        life.becomes("files_failed", since=began, event="no directory can be made")
        # The sandbox allows a directory that is there at the start, and no place for a new one.
        certs.unlink()
    with running(config) as daemon:
        life.visitor.until_it_is_there()
        life.becomes(since=time.monotonic(), event="a restart")
        assert (certs / "svid.pem").exists()

        certs.rename(aside)
        certs.write_text("in the way again")
        rotated = now(life.issue)
        reasons = ("files_failed", "files_stale")
        life.becomes(*reasons, since=rotated, event="a rotation that cannot be written")
        certs.unlink()
        aside.rename(certs)
        mended = now(lambda: daemon.process.send_signal(signal.SIGUSR1))
        life.becomes(since=mended, event="mended, SIGUSR1")

        lost = now(life.agent.kill)
        life.becomes(since=lost, event="the agent is killed", warnings=("agent_lost",))
        life.agent.deny()
        life.agent.start()
        denied = time.monotonic()
        life.becomes("denied", since=denied, event="an agent that denies")
        granted = now(life.issue)
        life.becomes(since=granted, event="the entry is back")
        daemon.process.terminate()
        assert daemon.wait() == 0


def test_pages_that_report_do_not_knock_at_the_backend(life: Life) -> None:
    with HttpBackend() as backend:
        config = write_config(
            life.folder,
            life.agent.path,
            backend.address,
            mode="http",
            more=admin_table(life.folder),
        )
        with (life.folder / "policy.toml").open("a") as file:
            file.write(EVERYTHING)
        life.issue()
        life.agent.start()
        with running(config):
            life.visitor.until_it_is_there()
            life.becomes(since=time.monotonic(), event="start")
            before = backend.connections
            begun = time.monotonic()
            while time.monotonic() - begun < 2:
                assert life.visitor.get("/status")[0] == life.visitor.get("/metrics")[0] == 200
            assert b"spiffe_sidecar_backend_up 1.0" in life.visitor.get("/metrics")[1]
            most = 1 + int((time.monotonic() - begun) / 5)
            assert backend.connections - before <= most


def test_health_path_that_takes_its_time_is_no_reason_against(life: Life) -> None:
    with HttpBackend() as backend:
        later = threading.Event()

        def answer(call: Call) -> None:
            later.wait(1.3)  # more than a second, and less than [timeouts] health
            call.answer(200)

        backend.routes["/api/version"] = answer
        more = admin_table(life.folder)
        config = write_config(life.folder, life.agent.path, backend.address, mode="http", more=more)
        with (life.folder / "policy.toml").open("a") as file:
            file.write(EVERYTHING)
        life.issue()
        life.agent.start()
        with running(config) as daemon:
            life.visitor.until_it_is_there()
            life.becomes(since=time.monotonic(), event="start")
            assert life.visitor.health().ready
            later.set()
        assert daemon.lines("backend down") == []
