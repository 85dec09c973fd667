"""SIGTERM under load: running answers finish, nothing new begins; SIGUSR1 fetches and writes now.

How long each part took: `pytest -s` on this file.
"""

from __future__ import annotations

import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.ca import Authority
from tests.client import connect, receive_exactly, server_serial
from tests.fake_agent import AgentProcess
from tests.http_backend import Call
from tests.http_client import HttpPeer, Site, request, running_site
from tests.scenarios.conftest import Launch

STREAMS = 32
# A guard against hanging; nothing is measured by it.
GUARD_SECONDS = 30.0


class Streams:
    """Answers that run: who reads each, and who speaks."""

    def __init__(self, site: Site, count: int, closing: ExitStack) -> None:
        context = site.context()
        self.pairs: list[tuple[HttpPeer, Call]] = []
        for _ in range(count):
            peer = closing.enter_context(HttpPeer(site.address, context))
            peer.sendall(request("POST", "/held/chat", body=b'{"stream": true}'))
            call = site.backend.next_call()
            call.begin_stream()
            head = peer.until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            self.pairs.append((peer, call))

    def all_run(self, said: str) -> None:
        """Say something in each, and have it read."""
        for _, call in self.pairs:
            call.event(said)
        for peer, _ in self.pairs:
            assert peer.until(b"\n\n\r\n").endswith(b"data: %b\n\n\r\n" % said.encode())

    def finish(self) -> None:
        """End each as a model server does, and have its end read."""
        for peer, call in self.pairs:
            call.end_stream()
            call.release()
            assert peer.until(b"0\r\n\r\n") == b"0\r\n\r\n"

    def are_cut(self) -> bool:
        """Tell whether each ends now, does not look whole, and the model server is told."""
        cut = [peer.rest() == (b"", False) for peer, _ in self.pairs]
        gone = [call.wait_gone() for _, call in self.pairs]
        return all(cut) and set(gone) == {"ConnectionResetError"}


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


@contextmanager
def draining_site(authority: Authority, seconds: float) -> Iterator[Site]:
    with running_site(authority, more=f"[connections]\ndrain_seconds = {seconds}\n") as site:
        yield site


def until_refused(address: tuple[str, int]) -> float:
    """Knock until the port refuses; gives the seconds."""
    begun = time.monotonic()
    while True:
        try:
            socket.create_connection(address, GUARD_SECONDS).close()
        except ConnectionRefusedError:
            return time.monotonic() - begun
        except ConnectionResetError:
            pass  # it was taken from the backlog of a port that closes
        assert time.monotonic() < begun + GUARD_SECONDS, "the port is open still"


def test_running_streams_finish_and_nothing_new_begins(
    authority: Authority, closing: ExitStack
) -> None:
    with draining_site(authority, 300) as site:
        streams = Streams(site, STREAMS, closing)
        idle = closing.enter_context(site.dial())
        assert idle.ask("GET", "/v1/models").status == 200
        site.daemon.process.terminate()
        refused = until_refused(site.address)
        line = site.daemon.wait_for("draining", signal="SIGTERM")
        assert line["seconds"] == 300
        assert line["connections"] > STREAMS  # whoever knocked in time may be among them
        assert idle.rest() == (b"", True), "nobody waits for a request that need not come"
        for number in range(10):
            streams.all_run(f"still here {number}")
        assert site.daemon.process.poll() is None
        begun = time.monotonic()
        streams.finish()
        assert [peer.rest() for peer, _ in streams.pairs] == [(b"", True)] * STREAMS
        assert site.daemon.wait() == 0
        ended = time.monotonic() - begun
        assert not site.daemon.lines("cutting")
        finished = [line for line in site.daemon.lines("request") if line["rule"] == "clients"]
        assert [line["status"] for line in finished] == [200] * (STREAMS + 1)
    print(
        f"\n{STREAMS} streams: port refused {refused * 1000:.0f} ms after SIGTERM, exit 0 "
        f"{ended * 1000:.0f} ms after the first of them began to end"
    )


def test_none_is_cut_before_the_deadline_and_all_are_then(
    authority: Authority, closing: ExitStack
) -> None:
    seconds = 3.0
    with draining_site(authority, seconds) as site:
        streams = Streams(site, STREAMS, closing)
        begun = time.monotonic()
        site.daemon.process.terminate()
        site.daemon.wait_for("draining", connections=STREAMS)
        streams.all_run("still here")
        assert streams.are_cut()
        lasted = time.monotonic() - begun
        assert lasted >= seconds, "cut before the deadline"
        site.daemon.wait_for("cutting", connections=STREAMS)
        assert site.daemon.wait() == 0
        lines = site.daemon.lines("request")
        assert [line["reason"] for line in lines] == ["cut: shutting down"] * STREAMS
    print(f"\n{STREAMS} streams: drain_seconds = {seconds:g}, all cut {lasted:.3f} s after SIGTERM")


def test_second_sigterm_cuts_at_once(authority: Authority, closing: ExitStack) -> None:
    with draining_site(authority, 300) as site:
        streams = Streams(site, STREAMS, closing)
        site.daemon.process.terminate()
        site.daemon.wait_for("draining", connections=STREAMS)
        streams.all_run("still here")
        begun = time.monotonic()
        site.daemon.process.terminate()
        assert streams.are_cut()
        site.daemon.wait_for("cutting", connections=STREAMS)
        assert site.daemon.wait() == 0
    print(f"\n{STREAMS} streams: all cut, exit 0 {time.monotonic() - begun:.3f} s after the second")


def test_request_that_has_begun_to_come_is_answered(authority: Authority) -> None:
    with draining_site(authority, 300) as site, site.dial() as peer:
        assert peer.ask("GET", "/v1/models").status == 200
        peer.sendall(b"GET /v1/models HTTP/1.1\r\nHost: mod")
        with site.dial() as other:
            assert other.ask("GET", "/v1/models").status == 200  # by now that has been read
        site.daemon.process.terminate()
        site.daemon.wait_for("draining")
        peer.sendall(b"els\r\n\r\n")
        answer = peer.answer()
        assert (answer.status, answer.get("connection")) == (200, "close")
        assert peer.rest() == (b"", True)
        assert site.daemon.wait() == 0


# SIGUSR1.

FILES = '[cert_files]\ndirectory = "certs"'


def _until(fits: Callable[[], bool], what: str) -> float:
    begun = time.monotonic()
    while not fits():
        assert time.monotonic() < begun + GUARD_SECONDS, f"never: {what}"
        time.sleep(0.005)
    return time.monotonic() - begun


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content


def test_sigusr1_fetches_and_writes_what_was_removed_by_hand(
    launch: Launch, agent: AgentProcess, folder: Path
) -> None:
    daemon = launch(more='level = "debug"\n' + FILES)
    line = daemon.wait_for("certificate files published")
    certs, took = folder / "certs", []
    for name in ("svid.pem", f"{line['generation']}/svid_key.pem"):
        content = (certs / name).read_bytes()
        (certs / name).unlink()
        agent.forget_calls()
        daemon.process.send_signal(signal.SIGUSR1)
        took.append(_until(partial(_holds, certs / Path(name).name, content), name))
        daemon.wait_for("asked to fetch now")
        daemon.wait_for("identity confirmed")
        assert agent.calls() == 1
    print("\nSIGUSR1: back after", ", ".join(f"{seconds * 1000:.0f} ms" for seconds in took))


def test_sigusr1_does_not_wait_for_the_next_attempt(
    launch: Launch, agent: AgentProcess, authority: Authority, traefik: ssl.SSLContext, folder: Path
) -> None:
    daemon = launch(more=FILES)
    daemon.wait_for("certificate files published")
    agent.kill()
    daemon.wait_for("agent lost")
    newer = authority.svid()
    agent.send(newer, authority.bundle)
    agent.start()
    daemon.process.send_signal(signal.SIGUSR1)
    daemon.wait_for("identity rotated", serial=newer.serial)
    daemon.wait_for("certificate files published", serial=newer.serial)
    with connect(daemon.address, traefik) as tls:
        tls.sendall(b"hello")
        assert receive_exactly(tls, 5) == b"hello"
        assert server_serial(tls) == newer.serial


def test_sigusr1_without_an_agent_ends_nothing(
    launch: Launch, agent: AgentProcess, folder: Path, traefik: ssl.SSLContext
) -> None:
    daemon = launch(more=FILES)
    daemon.wait_for("certificate files published")
    with connect(daemon.address, traefik) as tls:
        tls.sendall(b"before")
        assert receive_exactly(tls, 6) == b"before"
        agent.kill()
        daemon.wait_for("agent lost", serving=True)
        path = folder / "certs/svid.pem"
        path.unlink()
        daemon.process.send_signal(signal.SIGUSR1)
        daemon.wait_for("asked to fetch now")
        _until(path.exists, "written from what we have")
        tls.sendall(b"after")
        assert receive_exactly(tls, 5) == b"after"
