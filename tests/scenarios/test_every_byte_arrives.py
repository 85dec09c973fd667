"""Every byte that came in is delivered, in order, before an end is told; and the end is true.

Random sizes, ends and paces, through the real daemon. What arrives is always the beginning of what
was sent, and all of it whenever the daemon's kernel had acknowledged it before the sender ended.
A clean end is told only where there was one.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sidecar.adapters.relay.arrival import unacknowledged
from tests.ca import Authority
from tests.client import client_context
from tests.conftest import TRAEFIK
from tests.daemon import Daemon, write_config
from tests.fake_agent import AgentProcess
from tests.fake_backend import EchoBackend
from tests.http_client import HttpPeer
from tests.scenarios.peer import HalfCloser

RESET = struct.pack("ii", 1, 0)
GUARD_SECONDS = 30
RECORD = 16384  # bytes in one TLS record
# Around whole records, what a socket's buffer holds, and the daemon's own buffer.
SIZES = [0, 1, 2, RECORD - 1, RECORD, RECORD + 1, 4 * RECORD, 65536 - 1, 128 * 1024 + 1]
SIZES += [256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 300_000]
sizes = st.sampled_from(SIZES) | st.integers(0, 300_000)
paces = st.sampled_from(["fast", "slow", "late"])
# FULL=1 looks further.
EXAMPLES: dict[str, Any] = {
    "max_examples": 2000 if os.environ.get("FULL") else 40,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
BLOCK = hashlib.sha256(b"block").digest() * 16384


def data_of(size: int) -> bytes:
    return BLOCK[:size]


@dataclass
class Reader:
    """Reads to the end, in a thread: `fast`, `slow`, or `late`, after the sender has ended."""

    pace: str
    received: bytearray = field(default_factory=bytearray)
    end: str = ""  # "clean" or the error's name
    begin: threading.Event = field(default_factory=threading.Event)

    def read(self, source: socket.socket | HalfCloser) -> None:
        if self.pace == "late":
            assert self.begin.wait(GUARD_SECONDS)
        try:
            while data := source.recv(8192 if self.pace == "slow" else 65536):
                self.received += data
                if self.pace == "slow":
                    time.sleep(0.001)
        except (OSError, ssl.SSLError) as exc:
            self.end = type(exc).__name__
        else:
            self.end = "clean"


def until_acknowledged(sock: socket.socket, late: Reader | None = None) -> None:
    """Wait until the other kernel has all; a reader that waits for the end begins if that helps."""
    stuck, deadline = time.monotonic() + 0.1, time.monotonic() + GUARD_SECONDS
    while unacknowledged(sock):
        assert time.monotonic() < deadline, "not acknowledged"
        if late is not None and time.monotonic() > stuck:
            late.begin.set()
        time.sleep(0.0005)


class Scripted(EchoBackend):
    """Sends and reads as the example says, both at once."""

    def __init__(self) -> None:
        self.prepare(b"", "stay", Reader("fast"))
        super().__init__()

    def prepare(self, down: bytes, down_end: str, up: Reader, *, head: bool = False) -> None:
        """`head` is whether to read a request's head, byte by byte, before anything else."""
        self.down, self.down_end, self.up, self.head = down, down_end, up, head
        self.send_error = ""
        self.has_head, self.has_sent = threading.Event(), threading.Event()
        self.is_over = threading.Event()

    def serve(self, sock: socket.socket) -> None:
        head = b""
        while self.head and not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        self.has_head.set()
        reading = threading.Thread(target=self.up.read, args=(sock,))
        reading.start()
        try:
            if self.down:
                sock.sendall(self.down)
            until_acknowledged(sock)
            self.has_sent.set()
            if self.down_end == "fin":
                sock.shutdown(socket.SHUT_WR)
            elif self.down_end == "rst":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self.up.begin.set()
                sock.shutdown(socket.SHUT_RD)  # wakes the reader; nothing is sent by it
        except OSError as exc:
            self.send_error = type(exc).__name__
        finally:
            reading.join(GUARD_SECONDS)
            sock.close()
            self.has_sent.set()
            self.is_over.set()

    def finished(self) -> None:
        assert self.is_over.wait(GUARD_SECONDS), "the backend's connection goes on"


@contextmanager
def serving(authority: Authority, mode: str) -> Iterator[tuple[Daemon, ssl.SSLContext, Scripted]]:
    """A daemon in front of a scripted backend, and what a peer presents."""
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        folder = Path(name)
        agent = AgentProcess(folder / "agent.sock")
        agent.send(authority.svid(), authority.bundle)
        agent.start()
        backend = Scripted()
        config = write_config(folder, agent.path, backend.address, mode=mode)
        if mode == "http":
            with (folder / "policy.toml").open("a") as policy:
                policy.write('endpoints = ["*"]\n')
        daemon = Daemon(config)
        try:
            issued = authority.sign(authority.leaf(TRAEFIK))
            yield daemon, client_context(authority, issued, folder), backend
        finally:
            daemon.stop()
            agent.stop()
            backend.close()
        assert "Traceback" not in "".join(daemon.raw)


@pytest.fixture(scope="module")
def streams(authority: Authority) -> Iterator[tuple[Daemon, ssl.SSLContext, Scripted]]:
    with serving(authority, "stream") as parts:
        yield parts


@pytest.fixture(scope="module")
def requests(authority: Authority) -> Iterator[tuple[Daemon, ssl.SSLContext, Scripted]]:
    with serving(authority, "http") as parts:
        yield parts


def end_as(peer: HalfCloser, end: str) -> None:
    """End a peer's side; after `close_notify` and `fin` it goes on to read."""
    if end == "close_notify":
        peer.send_end()
    elif end == "fin":
        peer.sock.shutdown(socket.SHUT_WR)
    else:
        if end == "rst":
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.sock.close()


peer_ends = st.sampled_from(["close_notify", "fin", "close", "rst"])


@given(
    up=sizes,
    down=sizes,
    peer_end=peer_ends,
    down_end=st.sampled_from(["stay", "fin", "rst"]),
    up_pace=paces,
    down_pace=paces,
    backend_first=st.booleans(),
)
@example(16384, 0, "fin", "stay", "fast", "fast", False)
@example(65536, 0, "close", "stay", "fast", "fast", False)
@example(300_000, 0, "fin", "stay", "late", "fast", False)
@example(300_000, 0, "rst", "stay", "late", "fast", False)
@example(40_000, 10, "fin", "fin", "fast", "fast", True)
@example(0, 300_000, "close_notify", "rst", "fast", "late", True)
@example(300_000, 300_000, "close", "fin", "late", "fast", True)
@settings(**EXAMPLES)
def test_bytes_of_a_stream(
    streams: tuple[Daemon, ssl.SSLContext, Scripted],
    up: int,
    down: int,
    peer_end: str,
    down_end: str,
    up_pace: str,
    down_pace: str,
    backend_first: bool,
) -> None:
    """`backend_first`: the backend has sent all, and ended, before the peer ends."""
    daemon, context, backend = streams
    sent, said = data_of(up), data_of(down)
    reader, hearer = Reader(up_pace), Reader(down_pace)
    backend.prepare(said, down_end, reader)
    with HalfCloser(daemon.address, context) as peer:
        with suppress(ConnectionError) if down_end == "rst" else nullcontext():
            peer.sendall(sent)
            until_acknowledged(peer.sock, reader)
        if backend_first:
            assert backend.has_sent.wait(GUARD_SECONDS)
        with suppress(OSError) if down_end == "rst" else nullcontext():
            end_as(peer, peer_end)
        reader.begin.set()
        if peer_end in ("close_notify", "fin"):
            if down_pace == "late":
                backend.has_sent.wait(0.2)
            hearer.begin.set()
            hearer.read(peer)
        backend.finished()

    assert sent.startswith(reader.received)
    if down_end != "rst":
        assert len(reader.received) == up
        reset = reader.end == "ConnectionResetError" or bool(backend.send_error)
        assert reset if peer_end != "close_notify" else reader.end == "clean"
    if peer_end == "close_notify" or (peer_end == "fin" and backend_first):
        assert len(hearer.received) == down
    assert said.startswith(hearer.received)
    if peer_end == "close_notify":
        assert (hearer.end == "clean") == (down_end != "rst")
    elif peer_end == "fin" and down_end != "fin":
        assert hearer.end != "clean"


@given(size=sizes, missing=st.just(0) | sizes, peer_end=peer_ends, pace=paces)
@example(16384, 0, "fin", "fast")
@example(300_000, 1, "close", "late")
@example(300_000, 0, "rst", "late")
@settings(**EXAMPLES)
def test_bytes_of_an_upload_whose_peer_leaves(
    requests: tuple[Daemon, ssl.SSLContext, Scripted],
    size: int,
    missing: int,
    peer_end: str,
    pace: str,
) -> None:
    daemon, context, backend = requests
    body, reader = data_of(size), Reader(pace)
    backend.prepare(b"", "stay", reader, head=True)
    head = f"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: {size + missing}\r\n\r\n"
    with HalfCloser(daemon.address, context) as peer:
        peer.sendall(head.encode())
        assert backend.has_head.wait(GUARD_SECONDS)
        peer.sendall(body)
        until_acknowledged(peer.sock, reader)
        end_as(peer, peer_end)
        reader.begin.set()
        backend.finished()
    assert bytes(reader.received) == body
    assert reader.end == "ConnectionResetError"


FRAMINGS = {
    "length": b"Content-Length: %d\r\n\r\n",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n",
    "until the end": b"\r\n",
}


@given(
    size=sizes,
    missing=st.just(0) | sizes,
    framing=st.sampled_from(sorted(FRAMINGS)),
    backend_end=st.sampled_from(["fin", "rst"]),
    pace=paces,
    upload=st.sampled_from([0, 1, 100_000, 300_000]),
)
@example(300_000, 0, "length", "rst", "late", 300_000)
@example(300_000, 1, "length", "rst", "late", 300_000)
@example(300_000, 0, "until the end", "rst", "late", 0)
@example(16384, 0, "until the end", "fin", "fast", 1)
@settings(**EXAMPLES)
def test_bytes_of_an_answer_whose_backend_ends(
    requests: tuple[Daemon, ssl.SSLContext, Scripted],
    size: int,
    missing: int,
    framing: str,
    backend_end: str,
    pace: str,
    upload: int,
) -> None:
    """`upload` bytes of a larger body are on their way meanwhile, and are not read."""
    daemon, context, backend = requests
    body = data_of(size)
    answer = b"HTTP/1.1 200 OK\r\n" + FRAMINGS[framing]
    if framing == "length":
        answer %= size + missing
    if framing == "chunked":
        answer += b"%x\r\n" % (size + missing) if size + missing else b""
        answer += body + (b"\r\n0\r\n\r\n" if size and not missing else b"")
        answer += b"0\r\n\r\n" if not size + missing else b""
    else:
        answer += body
    backend.prepare(answer, backend_end, Reader("late"), head=True)
    complete = backend_end == "fin" if framing == "until the end" else not missing
    with HttpPeer(daemon.address, context) as peer:
        peer.sendall(
            f"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: {upload * 2}\r\n\r\n".encode()
        )
        assert backend.has_head.wait(GUARD_SECONDS)
        with suppress(ConnectionError):
            peer.sendall(data_of(upload))
        if pace == "late":
            backend.has_sent.wait(0.2)
        hearer = Reader(pace)
        hearer.begin.set()
        if complete:
            got = peer.answer("POST").body
            assert got == body
        else:
            hearer.read(peer)
            assert hearer.end != "clean"
            heard = payload(bytes(hearer.received))
            assert heard == body
        backend.up.begin.set()
    backend.finished()


def payload(answer: bytes) -> bytes:
    """What came of an answer's body, framed by its length or in chunks."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return rest
    data = b""
    while b"\r\n" in rest:
        length, _, rest = rest.partition(b"\r\n")
        data, rest = data + rest[: int(length, 16)], rest[int(length, 16) + 2 :]
    return data
