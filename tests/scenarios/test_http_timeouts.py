"""Whoever lets us wait has a deadline, and is told which one it was if that can still be said."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.ca import Authority
from tests.http_backend import BLOCK
from tests.http_client import CUTS, EVERYTHING, HttpPeer, Site, new_id, request, running_site
from tests.scenarios.conftest import Launch

HEAD_SECONDS, IDLE_SECONDS, SILENCE_SECONDS = 0.5, 0.3, 1
# Another time than for the rest, so that a test sees which of them ended it.
ANSWER_SECONDS = 1.5
_FOR = f"for {SILENCE_SECONDS} s ([timeouts] between_bytes)"
NO_BODY, NO_MORE = f"no byte of the request's body {_FOR}", f"no further byte of the answer {_FOR}"
NO_READER = f"the peer took no byte of its answer {_FOR}"
NO_ANSWER = f"no byte of an answer for {ANSWER_SECONDS} s ([timeouts] first_byte)"
MORE = f"""
[timeouts]
request_head = {HEAD_SECONDS}
idle = {IDLE_SECONDS}
first_byte = {ANSWER_SECONDS}
between_bytes = {SILENCE_SECONDS}
"""


@pytest.fixture(scope="module")
def running(authority: Authority) -> Iterator[Site]:
    with running_site(authority, more=MORE) as site:
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


# The peer's head.

HEAD = request("GET", "/v1/models", "X-Pad: " + "x" * 500)


def is_told_that_the_head_is_late(peer: HttpPeer) -> bool:
    answer = peer.answer()
    assert peer.rest() == (b"", True)
    return (answer.status, answer.get("connection")) == (408, "close")


def test_head_that_stops_is_answered_with_408(site: Site) -> None:
    with ExitStack() as stack:
        peers = []
        for served in (0, 2):
            for begun in (HEAD[:1], HEAD[:50], HEAD[:-1]):
                peer = stack.enter_context(site.dial())
                for _ in range(served):
                    assert peer.ask("GET", "/v1/models").status == 200
                peer.sendall(begun)
                peers.append(peer)
        for peer in peers:
            assert is_told_that_the_head_is_late(peer)
    assert site.backend.untaken() == ["GET /v1/models"] * 6


def test_head_that_drips_has_the_same_deadline(site: Site, peer: HttpPeer) -> None:
    for byte in HEAD[:-1]:
        peer.sendall(bytes([byte]))
        if select.select([peer.sock], [], [], 0.02)[0] and peer.has_word():
            break
    else:
        raise AssertionError("the daemon listened to all of it")
    assert is_told_that_the_head_is_late(peer)
    assert site.backend.untaken() == []


def test_half_a_request_behind_a_whole_one_has_the_same_deadline(
    site: Site, peer: HttpPeer
) -> None:
    peer.sendall(request("GET", "/v1/models") + HEAD[:50])
    assert peer.answer().status == 200
    assert is_told_that_the_head_is_late(peer)
    assert site.backend.untaken() == ["GET /v1/models"]


# A connection that waits.


def test_idle_connection_is_ended_with_a_word_and_no_answer(site: Site) -> None:
    with ExitStack() as stack:
        peers = {served: stack.enter_context(site.dial()) for served in (0, 1, 3)}
        for served, peer in peers.items():
            for _ in range(served):
                assert peer.ask("GET", "/v1/models").get("connection") is None
        for served, peer in peers.items():
            assert peer.rest() == (b"", True)
            line = site.daemon.wait_for("connection closed", address=peer.address)
            assert line["requests"] == served


def test_connection_that_is_used_is_not_idle(peer: HttpPeer) -> None:
    end = time.monotonic() + 3 * IDLE_SECONDS
    while time.monotonic() < end:
        assert peer.ask("GET", "/v1/models").status == 200
        assert not select.select([peer.sock], [], [], IDLE_SECONDS / 3)[0]


# Silence in a request or an answer.


def test_body_that_stops_is_answered_with_408(site: Site) -> None:
    request_id = new_id()
    with site.dial() as sized, site.dial() as chunked:
        calls = []
        for peer, raw in (
            (sized, request("POST", "/held/x", "Content-Length: 10") + b"half"),
            (chunked, request("POST", "/held/x", "Transfer-Encoding: chunked") + b"9\r\nhalf"),
        ):
            peer.sendall(raw.replace(b"Host", b"X-Request-Id: %b\r\nHost" % request_id.encode()))
            calls.append(site.backend.next_call())
            assert calls[-1].read_body(4) == b"half"
        for peer in (sized, chunked):
            answer = peer.answer()
            assert (answer.status, answer.get("connection")) == (408, "close")
            assert peer.rest() == (b"", True)
        for call in calls:
            assert call.wait_gone() == "ConnectionResetError"
            call.close()
    line = site.line(request_id)
    assert (line["status"], line["reason"]) == (408, NO_BODY)


def test_backend_that_says_nothing_is_a_504(site: Site) -> None:
    request_id = new_id()
    with ExitStack() as stack:
        peers, calls = [], []
        for size in (0, 100, len(BLOCK)):
            peers.append(stack.enter_context(site.dial()))
            body = BLOCK[:size]
            peers[-1].sendall(request("POST", "/held/x", f"X-Request-Id: {request_id}", body=body))
            calls.append(site.backend.next_call())
            assert len(calls[-1].body()) == size
        for peer in peers:
            answer = peer.answer()
            assert answer.status == 504
            assert f"no first byte of an answer for {ANSWER_SECONDS} s" in answer.json()["error"]
        for call in calls:
            assert call.wait_gone() == "ConnectionResetError"
            call.close()
    line = site.line(request_id)
    assert (line["status"], line["level"], line["reason"]) == (504, "warning", NO_ANSWER)


def test_backend_that_stops_reading_an_upload_is_a_504(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("POST", "/held/deaf", f"Content-Length: {1000 * len(BLOCK)}"))
    call = site.backend.next_call()
    while select.select([], [peer.sock], [], 0.3)[1]:  # until nobody takes any more
        peer.sock.settimeout(0.3)
        try:
            peer.sendall(BLOCK)
        except TimeoutError:
            break
    peer.sock.settimeout(20)
    assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 504 ")
    assert call.wait_gone() == "ConnectionResetError"
    call.close()


FRAMINGS = {
    "chunks": ("Transfer-Encoding: chunked", b"10\r\nhalf an answer"),
    "a length": ("Content-Length: 1000", b"half an answer"),
    "until the end": ("Connection: close", b"half an answer"),
}


def test_answer_that_stops_is_cut(site: Site) -> None:
    request_ids = {name: new_id() for name in FRAMINGS}
    with ExitStack() as stack:
        peers, calls = [], []
        for name, (header, begun) in FRAMINGS.items():
            peers.append(stack.enter_context(site.dial()))
            peers[-1].sendall(request("GET", "/held/x", f"X-Request-Id: {request_ids[name]}"))
            calls.append(site.backend.next_call())
            calls[-1].head(200, header)
            calls[-1].send(begun)
            peers[-1].until(b"half an answer")
        for peer in peers:
            rest, clean = peer.rest()
            assert not clean, "half an answer looks like a whole one"
            assert rest.strip() == b"", "neither a last chunk nor a second status"
        for call in calls:
            assert call.wait_gone() == "ConnectionResetError"
            call.close()
    for request_id in request_ids.values():
        assert (site.line(request_id)["status"], site.line(request_id)["reason"]) == (200, NO_MORE)


def test_peer_that_stops_reading_is_cut(site: Site, peer: HttpPeer) -> None:
    request_id = new_id()
    peer.sendall(request("GET", "/held/x", f"X-Request-Id: {request_id}"))
    call = site.backend.next_call()
    call.head(200, f"Content-Length: {1000 * len(BLOCK)}")
    with pytest.raises(CUTS):
        call.push(1000 * len(BLOCK))
    call.close()
    assert site.line(request_id)["reason"] == NO_READER
    assert not peer.rest()[1]


def test_tokens_may_take_their_time_and_pieces_of_a_body_too(site: Site, peer: HttpPeer) -> None:
    peer.sendall(request("POST", "/held/slow", "Content-Length: 2"))
    call = site.backend.next_call()
    for byte in (b"a", b"b"):
        assert not call.released.wait(0.6 * SILENCE_SECONDS)
        peer.sendall(byte)
        assert call.read_body(1) == byte
    call.begin_stream()
    for _ in range(2):
        assert not call.released.wait(0.6 * SILENCE_SECONDS)
        call.event("token")
        peer.until(b"data: token\n\n\r\n")
    call.end_stream()
    call.release()
    assert peer.until(b"0\r\n\r\n") == b"0\r\n\r\n"


def test_silence_of_one_is_not_that_of_another(site: Site) -> None:
    with site.dial() as silent, site.dial() as talking:
        silent.sendall(request("GET", "/held/silent"))
        silence = site.backend.next_call()
        talking.sendall(request("GET", "/held/talking"))
        talk = site.backend.next_call()
        talk.begin_stream()
        while not silent.has_word():
            talk.event("token")
            talking.until(b"data: token\n\n\r\n")
            assert not talk.released.wait(0.2)
        assert silent.answer().status == 504
        talk.end_stream()
        talk.release()
        assert talking.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        silence.close()


# The way to the backend.


def test_backend_that_takes_no_connection_has_a_deadline(
    launch: Launch, traefik: ssl.SSLContext
) -> None:
    with ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        full = False
        while not full:  # until the kernel lets somebody wait
            caller = held.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
            full = not select.select([], [caller], [], 0.5)[1]
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        daemon = launch(
            backend_address=where,
            mode="http",
            policy=EVERYTHING,
            more="[timeouts]\nbackend_connect = 0.5",
        )
        with HttpPeer(daemon.address, traefik) as peer:
            refused = peer.ask("POST", "/v1/chat/completions", body=b"{}")
            assert refused.status == 502
            assert refused.get("connection") is None
            line = daemon.wait_for("request", status=502)
            assert line["reason"] == f"backend {where} did not answer within 0.5 s"
            # Whoever leaves meanwhile is not waited for.
            peer.sendall(request("GET", "/v1/models"))
            peer.leave("close")
            daemon.wait_for("request", outcome="peer_left", status=0)


def test_half_a_head_is_the_other_504(site: Site) -> None:
    request_id = new_id()
    with site.dial() as peer:
        peer.sendall(request("GET", "/held/x", f"X-Request-Id: {request_id}"))
        call = site.backend.next_call()
        call.send(b"HTTP/1.1 200 OK\r\nContent-")
        answer = peer.answer()
        call.close()
    assert answer.status == 504
    assert f"no further byte of its answer for {SILENCE_SECONDS} s" in answer.json()["error"]
    line = site.line(request_id)
    assert (line["status"], line["reason"]) == (504, NO_MORE)


def test_answer_that_is_waited_for_may_take_longer_than_its_next_byte(
    site: Site, peer: HttpPeer
) -> None:
    peer.sendall(request("POST", "/held/loads", body=b"{}"))
    call = site.backend.next_call()
    assert call.body() == b"{}"
    assert not call.released.wait(SILENCE_SECONDS + 0.2)
    call.answer(200, b"loaded")
    call.release()
    assert peer.answer("POST").body == b"loaded"
