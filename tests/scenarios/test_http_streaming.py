"""Bytes go through as they come, both ways; a side that is slow or gone is felt by the other."""

from __future__ import annotations

import hashlib
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.ca import Authority
from tests.http_backend import BLOCK, Call
from tests.http_client import HttpPeer, Site, new_id, request, running_site
from tests.scenarios.memory import resident_mib

MIB = 2**20
SIZE = 100 * MIB  # what max_body_bytes allows, to the byte
GROWTH_MIB = 30
LEFT = "the peer left before it had its answer"


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    """One site for all; what came before is not this test's."""
    running.backend.forget()
    return running


@pytest.fixture
def peer(site: Site) -> Iterator[HttpPeer]:
    with site.dial() as peer:
        yield peer


@pytest.fixture(scope="module")
def digest() -> str:
    """Of `SIZE` bytes of blocks."""
    whole = hashlib.sha256()
    for _ in range(SIZE // len(BLOCK)):
        whole.update(BLOCK)
    return whole.hexdigest()


# Nothing is held back.


def test_each_event_arrives_before_the_next_one_is_made(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("POST", "/held/chat", body=b'{"stream": true}'))
    call = site.backend.next_call()
    call.begin_stream()
    head = peer.until(b"\r\n\r\n").lower()
    assert b"content-type: text/event-stream" in head
    for number in range(200):
        call.event(f"token {number}")
        assert f"data: token {number}\n\n".encode() in peer.until(b"\n\n\r\n")
    call.end_stream()
    call.release()
    assert peer.until(b"0\r\n\r\n") == b"0\r\n\r\n"
    assert peer.ask("GET", "/v1/models").status == 200


@pytest.mark.parametrize(
    "framing", ["Content-Length: 1000", "Connection: close"], ids=["a length", "until the end"]
)
def test_each_byte_of_an_answer_arrives_before_the_next_one_is_made(
    framing: str, site: Site, peer: HttpPeer
) -> None:
    peer.sendall(request("GET", "/held/bytes"))
    call = site.backend.next_call()
    call.head(200, framing)
    peer.until(b"\r\n\r\n")
    for _ in range(1000):
        call.send(b"~")
        assert peer.until(b"~").endswith(b"~")
    call.close()


def test_head_of_an_answer_may_come_byte_by_byte(site: Site, peer: HttpPeer) -> None:
    def answer(call: Call) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n":
            call.send(bytes([byte]))

    site.backend.routes["/v1/bytes"] = answer
    assert peer.ask("GET", "/v1/bytes").body == b"hello"
    assert peer.ask("GET", "/v1/models").status == 200


def test_each_piece_of_a_body_reaches_the_backend_before_the_next_one_is_sent(
    site: Site, peer: HttpPeer
) -> None:
    peer.sendall(request("POST", "/held/upload", "Transfer-Encoding: chunked"))
    call = site.backend.next_call()
    for number in range(100):
        piece = b"piece %d" % number
        peer.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert call.read_body(len(piece)) == piece
    peer.sendall(b"0\r\n\r\n")
    assert call.body() == b""
    call.answer(200, b"thanks")
    call.release()
    assert peer.answer().body == b"thanks"


def test_answer_may_begin_while_the_body_is_still_on_its_way(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("POST", "/held/both", "Content-Length: 3"))
    call = site.backend.next_call()
    call.begin_stream()
    assert b"connection: close" in peer.until(b"\r\n\r\n").lower(), "nobody waits for the body"
    for byte in (b"a", b"b", b"c"):
        peer.sendall(byte)
        assert call.read_body(1) == byte
        call.event(byte.decode())
        assert peer.until(b"\n\n\r\n").endswith(b"data: %b\n\n\r\n" % byte)
    call.end_stream()
    assert peer.rest() == (b"0\r\n\r\n", True)


# A peer that leaves.

WAYS = ["close", "reset", "close_notify"]


def waiting_for_the_first_byte(peer: HttpPeer, call: Call) -> None:
    """Nothing has been answered yet."""


def in_the_middle_of_an_answer(peer: HttpPeer, call: Call) -> None:
    call.begin_stream()
    call.event("one")
    peer.until(b"data: one\n\n")


def with_another_request_sent_ahead(peer: HttpPeer, call: Call) -> None:
    peer.sendall(request("POST", "/v1/ahead", body=b"x" * 1000))
    in_the_middle_of_an_answer(peer, call)


def not_reading_what_is_sent(_peer: HttpPeer, call: Call) -> None:
    call.head(200, f"Content-Length: {SIZE}")
    call.sock.setblocking(False)
    while select.select([], [call.sock], [], 0.5)[1]:  # until there is no room for a while
        call.sock.send(BLOCK)


@pytest.mark.parametrize(
    "when",
    [
        waiting_for_the_first_byte,
        in_the_middle_of_an_answer,
        with_another_request_sent_ahead,
        not_reading_what_is_sent,
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_backend_sees_at_once_that_the_peer_has_left(
    way: str, when: Callable[[HttpPeer, Call], None], site: Site, peer: HttpPeer
) -> None:
    request_id = new_id()
    peer.sendall(request("POST", "/held/long", f"X-Request-Id: {request_id}", body=b"{}"))
    call = site.backend.next_call()
    call.body()
    when(peer, call)
    left_at = time.monotonic()
    peer.leave(way)
    end = call.wait_gone()
    print(f"\n{way}, {when.__name__}: {end} after {(time.monotonic() - left_at) * 1000:.1f} ms")
    call.close()
    line = site.line(request_id)
    assert (line["reason"], line["level"]) == (LEFT, "warning")
    assert line["status"] == (0 if when is waiting_for_the_first_byte else 200)
    assert site.backend.untaken() == []


@pytest.mark.parametrize("way", WAYS)
def test_backend_sees_at_once_that_the_peer_has_left_in_its_body(
    way: str, site: Site, peer: HttpPeer
) -> None:
    request_id = new_id()
    headers = f"X-Request-Id: {request_id}", "Content-Length: 1000"
    peer.sendall(request("POST", "/held/long", *headers) + b"half a body")
    call = site.backend.next_call()
    assert call.read_body(11) == b"half a body"
    peer.leave(way)
    assert call.wait_gone() == "ConnectionResetError", "half a body looks like a whole one"
    call.close()
    assert site.line(request_id)["reason"] == LEFT


# A side that is slow.


def test_peer_that_does_not_read_makes_the_backend_wait(
    site: Site, peer: HttpPeer, digest: str
) -> None:
    stalled, at = threading.Event(), []

    def answer(call: Call) -> None:
        call.head(200, f"Content-Length: {SIZE}")
        for sent in range(0, SIZE, len(BLOCK)):
            if not stalled.is_set() and not select.select([], [call.sock], [], 0.5)[1]:
                at.append(sent)
                stalled.set()
            call.send(BLOCK)

    site.backend.routes["/v1/push"] = answer
    before = resident_mib(site.daemon.process.pid)
    peer.sendall(request("GET", "/v1/push"))
    assert stalled.wait(60), "the backend was never made to wait"
    growth = resident_mib(site.daemon.process.pid) - before
    assert at[0] < SIZE / 4
    with site.dial() as other:
        assert other.ask("GET", "/v1/models").status == 200, "one stalled answer holds up others"
    peer.until(b"\r\n\r\n")
    assert read_digest(peer, SIZE) == digest
    after = resident_mib(site.daemon.process.pid) - before
    print(f"\nstalled at {at[0] / MIB:.1f} MiB; memory grew by {growth:.1f}, {after:.1f} MiB")
    assert max(growth, after) < GROWTH_MIB
    assert peer.ask("GET", "/v1/models").status == 200


def test_backend_that_does_not_read_makes_the_peer_wait(
    site: Site, peer: HttpPeer, digest: str
) -> None:
    before = resident_mib(site.daemon.process.pid)
    stalled = threading.Event()

    def push() -> None:
        for _ in range(SIZE // len(BLOCK)):
            if not stalled.is_set() and not select.select([], [peer.sock], [], 0.5)[1]:
                stalled.set()
            peer.sendall(BLOCK)

    peer.sendall(request("POST", "/held/deaf", f"Content-Length: {SIZE}"))
    call = site.backend.next_call()
    pushing = threading.Thread(target=push)
    pushing.start()
    assert stalled.wait(60), "the peer was never made to wait"
    growth = resident_mib(site.daemon.process.pid) - before
    heard = hashlib.sha256()
    for piece in call.pieces():
        heard.update(piece)
    pushing.join(60)
    call.answer(200, heard.hexdigest().encode())
    call.release()
    assert peer.answer().body.decode() == digest
    print(f"\nmemory grew by {growth:.1f} MiB")
    assert growth < GROWTH_MIB


# 100 MiB.


def read_digest(peer: HttpPeer, size: int) -> str:
    whole, left = hashlib.sha256(), size
    while left:
        data = peer.take(left)
        assert data, f"ended {left} bytes too early"
        whole.update(data)
        left -= len(data)
    return whole.hexdigest()


@pytest.mark.parametrize("framing", ["a length", "chunks"])
def test_large_body_arrives_whole_and_costs_no_memory(
    framing: str, site: Site, peer: HttpPeer, digest: str
) -> None:
    pid = site.daemon.process.pid
    before = most = resident_mib(pid)
    length, frame = f"Content-Length: {SIZE}", b"%b"
    if framing == "chunks":
        length, frame = "Transfer-Encoding: chunked", b"10000\r\n%b\r\n"
    peer.sendall(request("POST", "/v1/upload", length))
    for number in range(SIZE // len(BLOCK)):
        peer.sendall(frame % BLOCK)
        if number % 200 == 0:
            most = max(most, resident_mib(pid))
    peer.sendall(b"0\r\n\r\n" if framing == "chunks" else b"")
    told = peer.answer().json()
    assert (told["received"], told["sha256"]) == (SIZE, digest)
    print(f"\nmemory grew by {most - before:.1f} MiB")
    assert most - before < GROWTH_MIB
    assert peer.ask("GET", "/v1/models").status == 200


def test_large_answer_in_chunks_arrives_whole_and_costs_no_memory(
    site: Site, peer: HttpPeer, digest: str
) -> None:
    def answer(call: Call) -> None:
        call.begin_stream()
        for _ in range(SIZE // len(BLOCK)):
            call.send(b"10000\r\n%b\r\n" % BLOCK)
        call.end_stream()

    site.backend.routes["/v1/download"] = answer
    pid = site.daemon.process.pid
    before = most = resident_mib(pid)
    peer.sendall(request("GET", "/v1/download"))
    peer.until(b"\r\n\r\n")
    whole, received = hashlib.sha256(), 0
    while size := int(peer.until(b"\r\n"), 16):
        whole.update(peer.exactly(size))
        assert peer.exactly(2) == b"\r\n"
        received += size
        if received % (10 * MIB) < size:
            most = max(most, resident_mib(pid))
    assert peer.until(b"\r\n") == b"\r\n"
    assert (received, whole.hexdigest()) == (SIZE, digest)
    print(f"\nmemory grew by {most - before:.1f} MiB")
    assert most - before < GROWTH_MIB
    assert peer.ask("GET", "/v1/models").status == 200


# The end of the daemon.


def test_running_answer_is_finished_before_the_daemon_ends(authority: Authority) -> None:
    with running_site(authority) as site, site.dial() as idle, site.dial() as busy:
        assert idle.ask("GET", "/v1/models").status == 200
        site.backend.forget()
        busy.sendall(request("GET", "/held/long"))
        call = site.backend.next_call()
        call.begin_stream()
        busy.until(b"\r\n\r\n")
        site.daemon.process.send_signal(signal.SIGTERM)
        site.daemon.wait_for("draining")
        assert idle.rest() == (b"", True), "nothing of it is running"
        call.event("last words")
        assert busy.until(b"\n\n\r\n").endswith(b"data: last words\n\n\r\n")
        call.end_stream()
        call.release()
        assert busy.rest() == (b"0\r\n\r\n", True)
        assert site.daemon.wait() == 0
