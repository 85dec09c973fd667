"""Told to stop, the daemon finishes what runs, takes nothing new, and exits with 0."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.client import connect, receive_exactly, server_serial
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.scenarios.conftest import Launch
from tests.scenarios.peer import dial, free_port, own_address, read_to_end, silent

ROUNDS, PEERS = 4, 200


def _echoes(tls: ssl.SSLSocket, data: bytes) -> bool:
    tls.sendall(data)
    return receive_exactly(tls, len(data)) == data


def _until_the_port_refuses(address: tuple[str, int]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address, 20).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it was taken from the backlog of a port that closes
    raise AssertionError("the port is open still")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_running_stream_finishes_and_new_connections_are_refused(
    number: signal.Signals, launch: Launch, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    address = daemon.address
    with dial(address, traefik) as tls:
        assert _echoes(tls, b"before")
        daemon.process.send_signal(number)
        daemon.wait_for("draining", signal=number.name, connections=1, seconds=300)
        _until_the_port_refuses(address)
        for part in range(100):
            assert _echoes(tls, b"%d" % part * 1000)
        tls.unwrap()  # raises unless the daemon announces its end too
    daemon.wait_for("connection closed", end="closed")
    daemon.wait_for("stopped")
    assert daemon.wait() == 0
    assert not daemon.lines("cutting")


def test_without_connections_it_ends_at_once(launch: Launch) -> None:
    daemon = launch()
    assert daemon.address
    daemon.process.terminate()
    daemon.wait_for("draining", connections=0)
    daemon.wait_for("stopped")
    assert daemon.wait() == 0


def test_handshake_that_has_begun_is_finished_and_served(
    launch: Launch, agent: AgentProcess, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    address = daemon.address
    with dial(address, traefik) as running:
        sock = socket.create_connection(address, 20)
        assert _echoes(running, b"accepted after this")
        daemon.process.terminate()
        daemon.wait_for("draining", connections=2)
        with traefik.wrap_socket(sock) as tls:
            assert _echoes(tls, b"in time")
            tls.unwrap()
        running.unwrap()
    assert daemon.wait() == 0


def test_second_signal_cuts_at_once(
    launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    with dial(daemon.address, traefik) as tls:
        assert _echoes(tls, b"before")
        own = own_address(tls)
        daemon.process.terminate()
        daemon.wait_for("draining", connections=1)
        assert _echoes(tls, b"draining")
        daemon.process.terminate()
        line = daemon.wait_for("cutting", connections=1)
        assert line["level"] == "warning"
        assert not read_to_end(tls).clean, "an answer that was cut looks whole"
    daemon.wait_for("connection closed", address=own, end="cut: shutting down")
    assert daemon.wait() == 0
    backend.wait_until(open_connections=0)


def test_drain_deadline_cuts(launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext) -> None:
    daemon = launch(more="[connections]\ndrain_seconds = 0.5")
    with dial(daemon.address, traefik) as tls:
        assert _echoes(tls, b"before")
        daemon.process.terminate()
        daemon.wait_for("draining", connections=1, seconds=0.5)
        daemon.wait_for("cutting", connections=1)
        assert not read_to_end(tls).clean, "an answer that was cut looks whole"
    assert daemon.wait() == 0
    backend.wait_until(open_connections=0)


def test_cut_while_peers_leave_is_a_good_end(launch: Launch, traefik: ssl.SSLContext) -> None:
    # The end of a connection and the cut meet in the same moment; not each time, so again.
    for _ in range(ROUNDS):
        daemon = launch()
        with ExitStack() as held:
            peers = [held.enter_context(connect(daemon.address, traefik)) for _ in range(PEERS)]
            for tls in peers:
                assert _echoes(tls, b"x")
            daemon.process.terminate()
            daemon.wait_for("draining", connections=PEERS)
            daemon.process.terminate()
        assert daemon.wait() == 0, "".join(daemon.raw)[-2000:]
        assert len(daemon.lines("connection closed")) == PEERS


def test_cut_stream_is_logged_with_what_it_moved(launch: Launch, traefik: ssl.SSLContext) -> None:
    daemon = launch(more="[connections]\ndrain_seconds = 0")
    with dial(daemon.address, traefik) as tls:
        assert _echoes(tls, b"sixteen bytes ok")
        daemon.process.terminate()
        line = daemon.wait_for("connection closed", end="cut: shutting down")
    assert (line["received"], line["sent"]) == (16, 16)
    assert daemon.wait() == 0


def test_silent_handshakes_do_not_hold_up_the_end_for_longer_than_their_own_deadline(
    launch: Launch,
) -> None:
    daemon = launch(more="[timeouts]\nhandshake = 0.5")
    with silent(daemon.address, 3, b"\x16\x03\x01"):
        daemon.process.terminate()
        daemon.wait_for("draining")
        assert daemon.wait() == 0


def test_rotation_goes_on_while_draining(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext
) -> None:
    daemon = launch()
    with dial(daemon.address, traefik) as tls:
        assert _echoes(tls, b"before")
        daemon.process.terminate()
        daemon.wait_for("draining", connections=1)
        svid = authority.svid()
        agent.send(svid, authority.bundle)
        daemon.wait_for("identity rotated", serial=svid.serial)
        assert _echoes(tls, b"after")
        tls.unwrap()
    assert daemon.wait() == 0


def test_stop_while_waiting_for_an_agent(launch: Launch, agent: AgentProcess) -> None:
    agent.stop()
    daemon = launch()
    daemon.wait_for("agent lost", serving=False)
    daemon.process.terminate()
    daemon.wait_for("draining", connections=0)
    daemon.wait_for("stopped")
    assert daemon.wait() == 0


def test_stop_while_the_agent_hangs(launch: Launch, agent: AgentProcess) -> None:
    daemon = launch()
    assert daemon.address
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        daemon.process.terminate()
        daemon.wait_for("stopped")
        assert daemon.wait() == 0
    finally:
        os.kill(agent.pid, signal.SIGCONT)


def test_stop_while_the_agent_takes_the_call_and_says_nothing(
    launch: Launch, agent: AgentProcess
) -> None:
    agent.silence()
    daemon = launch()
    daemon.wait_for("starting")
    deadline = time.monotonic() + 20
    while not agent.calls():
        assert time.monotonic() < deadline, "nobody asked the agent"
    daemon.process.terminate()
    daemon.wait_for("stopped")
    assert daemon.wait() == 0


def test_stop_is_heard_from_the_first_line_on(launch: Launch) -> None:
    for _ in range(5):
        daemon = launch()
        daemon.wait_for("starting")
        daemon.process.terminate()
        assert daemon.wait() == 0, "killed by the signal instead of ending"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signal_that_comes_late_does_not_spoil_a_good_end(
    number: signal.Signals, launch: Launch
) -> None:
    for _ in range(5):
        daemon = launch()
        assert daemon.address
        daemon.process.terminate()
        daemon.wait_for("stopped")
        daemon.process.send_signal(number)
        assert daemon.wait() == 0


def test_killed_and_started_again_it_serves_on_the_same_port(
    launch: Launch, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    port = free_port()
    daemon = launch(port=port)
    with dial(daemon.address, traefik) as tls:
        assert _echoes(tls, b"before")
        serial = server_serial(tls)
        daemon.process.kill()
        assert not read_to_end(tls).clean
        assert daemon.wait() == -signal.SIGKILL
        backend.wait_until(open_connections=0)
        again = launch(port=port)
        assert again.address == ("127.0.0.1", port)
        with connect(again.address, traefik) as new:
            assert _echoes(new, b"again")
            assert server_serial(new) == serial


def test_port_that_is_taken_shows_at_start(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon: Daemon = launch(port=port)
        assert daemon.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}" in daemon.raw[0]
    assert "another process has the port" in daemon.raw[1]


IGNORING = f"""#!{sys.executable}
import os, signal, sys
for name in ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGCHLD"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM, signal.SIGHUP, signal.SIGINT}})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
HOOK = """
[cert_files]
directory = "certs"
[[after_rotation]]
name = "failing"
command = ["/bin/sh", "-c", "exit 3"]
retries = 0
"""


def test_signals_that_a_parent_ignored_or_blocked_are_heard(
    folder: Path, agent: AgentProcess, backend: EchoBackend, traefik: ssl.SSLContext
) -> None:
    wrapper = folder / "ignoring"
    wrapper.write_text(IGNORING)
    wrapper.chmod(0o700)
    config = write_config(folder, agent.path, backend.address, more=HOOK)
    daemon = Daemon(config, python=str(wrapper))
    try:
        with dial(daemon.address, traefik) as tls:
            assert _echoes(tls, b"before")
            failed = daemon.wait_for("after rotation gave up", hook="failing")
            assert failed["reason"].startswith("exit status 3")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for("configuration loaded", asked_by="SIGHUP")
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for("draining", signal="SIGTERM")
            daemon.process.send_signal(signal.SIGINT)
            daemon.wait_for("cutting")
        assert daemon.wait() == 0
    finally:
        daemon.stop()


@pytest.mark.parametrize(
    ("number", "when"),
    [
        pytest.param(signal.SIGTERM, "1  Identity", id="SIGTERM, early"),
        pytest.param(signal.SIGHUP, "2  An answer", id="SIGHUP, in the middle"),
        pytest.param(signal.SIGINT, "2  An answer", id="SIGINT, in the middle"),
    ],
)
def test_demo_that_is_ended_leaves_nothing(
    number: signal.Signals, when: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "sidecar", "demo"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, process_group=0
    ) as demo:
        assert demo.stdout is not None
        assert any(when in line for line in demo.stdout)
        demo.send_signal(number)
        demo.stdout.read()
    assert demo.returncode == 128 + number
    assert not list(tmp_path.iterdir()), "keys were left"
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)
