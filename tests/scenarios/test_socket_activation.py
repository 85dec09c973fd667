"""The daemon under a service manager: its socket is held for it, and it says how it is.

Figures of 100 restarts under load: `FULL=1 pytest -s` on this file.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.client import connect, server_serial
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.http_backend import HttpBackend
from tests.http_client import EVERYTHING, HttpPeer, request

FULL = bool(os.environ.get("FULL"))
RESTARTS = 100 if FULL else 10  # in each mode
PEERS = 4
# A guard against hanging; nothing is measured by it.
GUARD_SECONDS = 60.0
# As systemd does it: the socket on descriptor 3, for this very process.
_HAND_OVER = 'exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
MODES = ["stream", "http"]


class ActivatedDaemon(Daemon):
    """A daemon that a service manager starts."""

    def __init__(self, config: Path, held: socket.socket, **environ: str) -> None:
        command = [sys.executable, "-m", "sidecar", "run", "--config", str(config)]
        popen = subprocess.Popen

        def start(_: list[str], **options: object) -> subprocess.Popen[str]:
            own = {k: v for k, v in os.environ.items() if k != "SPIFFE_ENDPOINT_SOCKET"}
            return popen(
                ["/bin/sh", "-c", _HAND_OVER, "sh", *command],
                stdin=held.fileno(),
                stderr=subprocess.PIPE,
                text=True,
                env={**own, **environ},
            )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "Popen", start)
            super().__init__(config)


class Manager:
    """What systemd has of the service: its socket, and the notices that it hears."""

    def __init__(self, folder: Path, config: Path) -> None:
        self._config = config
        self.held = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address: tuple[str, int] = self.held.getsockname()
        self._path = folder / "notify"
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(self._path))
        self._notices.settimeout(GUARD_SECONDS)

    def start(self, **environ: str) -> ActivatedDaemon:
        environ["NOTIFY_SOCKET"] = str(self._path)
        return ActivatedDaemon(self._config, self.held, **environ)

    def notice(self) -> dict[str, str]:
        """Wait for the next one."""
        lines = self._notices.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def hears(self, name: str) -> dict[str, str]:
        """Wait for the next one, which has to be this."""
        notice = self.notice()
        assert notice.get(name) == "1", notice
        return notice

    def close(self) -> None:
        self.held.close()
        self._notices.close()


@pytest.fixture
def mode() -> str:
    return "http"


@pytest.fixture
def model() -> Iterator[HttpBackend]:
    with HttpBackend() as model:
        yield model


@pytest.fixture
def manager(folder: Path, agent: AgentProcess, model: HttpBackend, mode: str) -> Iterator[Manager]:
    config = write_config(folder, agent.path, model.address, mode=mode)
    config.write_text(config.read_text().replace('"127.0.0.1:0"', '"systemd"'))
    if mode == "http":
        with (folder / "policy.toml").open("a") as policy:
            policy.write(EVERYTHING)
    manager = Manager(folder, config)
    yield manager
    manager.close()


@contextmanager
def running(manager: Manager, **environ: str) -> Iterator[ActivatedDaemon]:
    """Run one until the test has ended it."""
    daemon = manager.start(**environ)
    try:
        yield daemon
    finally:
        if daemon.process.returncode is None:
            daemon.stop()
    assert "Traceback" not in "".join(daemon.raw)


class Load:
    """Peers that connect without pause, each with one request on a connection of its own."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self._address, self._context = address, context
        self._changed = threading.Condition()
        self._ended = False
        self.answered: Counter[str] = Counter()  # by the serial that was presented
        self.failures: Counter[str] = Counter()
        self.slowest = 0.0
        self._threads = [threading.Thread(target=self._run) for _ in range(PEERS)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, serial: str) -> None:
        """Wait until somebody was answered under this SVID."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.answered[serial], GUARD_SECONDS)

    def stop(self) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join(GUARD_SECONDS)

    def _run(self) -> None:
        step = "connect"
        while not self._ended:
            begun = time.monotonic()
            try:
                step = "connect"
                sock = socket.create_connection(self._address, GUARD_SECONDS)
                with sock:
                    step = "handshake"
                    with self._context.wrap_socket(sock) as tls:
                        serial = server_serial(tls)
                        step = "answer"
                        tls.sendall(request("GET", "/v1/models"))
                        if not tls.recv(65536).startswith(b"HTTP/1.1 200"):
                            raise ConnectionError("no answer")
            except OSError as exc:
                with self._changed:
                    self.failures[f"{step}: {exc!r}"] += 1
            else:
                with self._changed:
                    self.answered[serial] += 1
                    self.slowest = max(self.slowest, time.monotonic() - begun)
                    self._changed.notify_all()


@pytest.mark.parametrize("mode", MODES)
def test_restarts_under_load_fail_no_connection(
    mode: str,
    manager: Manager,
    agent: AgentProcess,
    authority: Authority,
    traefik: ssl.SSLContext,
) -> None:
    load = Load(manager.address, traefik)
    begun = time.monotonic()
    try:
        for number in range(RESTARTS + 1):
            svid = authority.svid()
            agent.send(svid, authority.bundle)
            with running(manager) as daemon:
                load.wait_for(svid.serial)
                if number == RESTARTS:
                    load.stop()
                daemon.process.terminate()
                assert daemon.wait() == 0
    finally:
        load.stop()
    seconds = time.monotonic() - begun
    print(
        f"\nmode {mode}: {RESTARTS} restarts in {seconds:.0f} s, {PEERS} peers: "
        f"{load.answered.total()} connections answered, failed: {dict(load.failures) or 0}; "
        f"slowest {load.slowest:.2f} s"
    )
    assert not load.failures


def test_connection_that_came_before_the_daemon_is_served(
    manager: Manager, traefik: ssl.SSLContext
) -> None:
    early = socket.create_connection(manager.address, GUARD_SECONDS)
    with early, running(manager), traefik.wrap_socket(early) as tls:
        tls.sendall(request("GET", "/v1/models"))
        assert tls.recv(12) == b"HTTP/1.1 200"


def test_socket_listens_on_while_the_daemon_drains_and_after_it(
    manager: Manager, model: HttpBackend, traefik: ssl.SSLContext
) -> None:
    with running(manager) as first:
        first.wait_for("ready", listening=["{}:{}".format(*manager.address)])
        with HttpPeer(manager.address, traefik) as peer:
            peer.sendall(request("GET", "/held/long"))
            call = model.next_call()
            call.begin_stream()
            peer.until(b"\r\n\r\n")
            first.process.terminate()
            first.wait_for("draining")
            waits = socket.create_connection(manager.address, GUARD_SECONDS)
            # The next one serves beside the one that drains.
            with waits, running(manager), traefik.wrap_socket(waits) as tls:
                tls.sendall(request("GET", "/v1/models"))
                assert tls.recv(12) == b"HTTP/1.1 200"
                call.event("still here")
                assert peer.until(b"\n\n\r\n").endswith(b"data: still here\n\n\r\n")
            call.end_stream()
            call.release()
            assert peer.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        assert first.wait() == 0


def test_manager_is_told_of_start_reload_and_end(manager: Manager) -> None:
    with running(manager) as daemon:
        ready = manager.hears("READY")
        assert ready["STATUS"] == "serving on {}:{}".format(*manager.address)
        for _ in range(3):
            asked = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            daemon.process.send_signal(signal.SIGHUP)
            assert int(manager.hears("RELOADING")["MONOTONIC_USEC"]) >= asked
            manager.hears("READY")
        daemon.process.terminate()
        assert "draining" in manager.hears("STOPPING")["STATUS"]
        assert daemon.wait() == 0


def test_reload_that_is_refused_is_over_too(manager: Manager, folder: Path) -> None:
    with running(manager) as daemon:
        manager.hears("READY")
        (folder / "policy.toml").write_text("nonsense")
        daemon.wait_for("policy refused, the old one stays")
        daemon.process.send_signal(signal.SIGHUP)
        manager.hears("RELOADING")
        manager.hears("READY")


def test_manager_is_told_of_readiness_only_with_an_identity(
    manager: Manager, agent: AgentProcess, authority: Authority
) -> None:
    agent.deny()
    with running(manager) as daemon:
        daemon.wait_for("identity denied")
        agent.send(authority.svid(), authority.bundle)
        manager.hears("READY")
        daemon.wait_for("ready")
        daemon.process.terminate()
        manager.hears("STOPPING")


def test_watchdog_is_told_as_long_as_it_lives(
    manager: Manager, agent: AgentProcess, traefik: ssl.SSLContext
) -> None:
    with running(manager, WATCHDOG_USEC="200000") as daemon:
        heard: Counter[str] = Counter()
        while not heard["READY"] or heard["WATCHDOG"] < 5:
            heard.update(manager.notice().keys())
        with connect(manager.address, traefik):
            daemon.process.terminate()  # it is alive while it drains
            while not heard["STOPPING"]:
                heard.update(manager.notice().keys())
        assert daemon.wait() == 0


def test_program_without_its_socket_is_told_what_to_do(manager: Manager) -> None:
    daemon = Daemon(manager._config)  # nobody hands it a socket
    assert daemon.wait() == 1
    assert "LISTEN_FDS is not set" in "".join(daemon.raw)
