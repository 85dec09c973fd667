"""One request and its answer through the gate: whole or known to be cut, whoever is gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from sidecar.adapters.relay import PeerCutError, PeerLeftError, Relay, SilenceError, Traffic, Waited
from sidecar.adapters.tls import ServerIdentity, TlsStream
from sidecar.core.errors import BackendError, HttpError
from sidecar.core.http_gate import CONTINUE, HttpGate
from sidecar.core.http_headers import Extras
from sidecar.core.limits import Pace
from tests.adapters.deadlines import within
from tests.adapters.tls_ends import Cut, Peer, Wire, admit, tcp_ends
from tests.ca import Authority
from tests.client import client_context

MIB = 1024 * 1024
MOST = 20 * MIB
NEVER = 1e9  # real deadlines are useless where the clock jumps
NO_PACE = Pace(NEVER, 0, NEVER)
# What goes to the backend for a head; how it frames the body is no matter here.
HEAD = b"POST /x HTTP/1.1\r\nhost: backend\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED_ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HALF_AN_ANSWER = CHUNKED_ANSWER + b"5\r\ntoken\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\n\r\n"


def asked(*headers: str) -> bytes:
    """The head of a request, as the peer sends it."""
    return "\r\n".join(["POST /x HTTP/1.1", "Host: m", *headers, "", ""]).encode()


@dataclass
class Line:
    """A peer, a backend, and one gate between them."""

    peer: Peer
    backend: Wire
    ours: TlsStream
    our_backend: socket.socket
    relay: Relay
    nursery: trio.Nursery
    gate: HttpGate = field(default_factory=lambda: HttpGate(32768))
    traffic: Traffic = field(default_factory=Traffic)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None

    def begin(self, head: bytes, *, most: int = MOST, to_peer: bytes = b"") -> None:
        """Begin an exchange with a request whose head is in the gate already."""
        self.gate.receive(head)
        assert self.gate.has_request()
        self.gate.limit_body(most)
        self.traffic, self.ended, self.error = Traffic(), trio.Event(), None
        self.scope = trio.CancelScope()
        begin = self.gate.admit(HEAD, "the-id", Extras(), closes=False), to_peer
        self.nursery.start_soon(self._exchange, begin)

    async def _exchange(self, begin: tuple[bytes, bytes]) -> None:
        """As `http_mode` does it: a backend that did not answer well is not used again."""
        try:
            with self.scope:
                await self.relay.exchange(
                    self.ours, self.our_backend, self.gate, begin, self.traffic
                )
        except (BackendError, HttpError, PeerLeftError, SilenceError) as exc:
            self.error = exc
        if not self.gate.backend_is_reusable:
            self.our_backend.close()
        self.ended.set()

    async def ends(self) -> Exception | None:
        await self.ended.wait()
        return self.error

    async def receive_answer(self) -> tuple[bytes, bytes]:
        """A head of the answer, and what came behind it."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self.peer.receive()
        head, _, body = data.partition(b"\r\n\r\n")
        return head.lower(), body


Lines = Callable[..., Awaitable[Line]]


@pytest.fixture
def dial(
    nursery: trio.Nursery,
    closing: ExitStack,
    identity: ServerIdentity,
    authority: Authority,
    folder: Path,
) -> Lines:
    """Open a line; `buffers` are the bytes that each socket holds. An answer may take 600 s."""
    context = client_context(authority, authority.sign(authority.leaf("/peer")), folder)

    async def open_line(buffers: int = 0, pace: Pace = NO_PACE) -> Line:
        relay = Relay(300, 600, pace)
        nursery.start_soon(relay.run)
        ours, wire = tcp_ends(closing)
        our_backend, backend = tcp_ends(closing)
        if buffers:
            for sock in (ours, wire.sock, our_backend, backend.sock):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        peer = Peer(wire, context)
        stream = await admit(ours, identity, peer)
        return Line(peer, backend, stream, our_backend, relay, nursery)

    return open_line


def chunked(data: bytes, size: int = 65536) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (*pieces, b""))


def unchunked(data: bytes) -> bytes:
    body, at = bytearray(), 0
    while at < len(data):
        line_end = data.index(b"\r\n", at)
        begin, count = line_end + 2, int(data[at:line_end], 16)
        body += data[begin : begin + count]
        at = begin + count + 2
    return bytes(body)


# Bytes.


LAST = b"\r\n0\r\n\r\n"


async def received(
    receive: Callable[[], Awaitable[bytes]], whole: Callable[[bytearray], bool]
) -> bytes:
    """Receive until it is whole."""
    data = bytearray()
    while not whole(data):
        data += await receive()
    return bytes(data)


@within(60)
async def test_body_and_answer_of_a_given_length_are_the_same_on_the_other_side(
    dial: Lines,
) -> None:
    line = await dial()
    up, down = os.urandom(8 * MIB), os.urandom(8 * MIB)
    line.begin(asked(f"Content-Length: {len(up)}"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, up)
        got = await line.backend.receive_exactly(len(HEAD) + len(up))
    assert got == HEAD + up
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            line.backend.send, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(down) + down
        )
        head, body = await line.receive_answer()
        body += await line.peer.receive_exactly(len(down) - len(body))
    assert body == down
    assert await line.ends() is None
    assert (line.traffic.received, line.traffic.sent) == (len(got), len(head) + 4 + len(body))
    assert line.gate.backend_is_reusable


@within(60)
async def test_body_and_answer_in_chunks_are_the_same_on_the_other_side(dial: Lines) -> None:
    line = await dial()
    up, down = os.urandom(8 * MIB), os.urandom(8 * MIB)
    line.begin(asked("Transfer-Encoding: chunked"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, chunked(up))
        got = await received(line.backend.receive, lambda data: data.endswith(LAST))
    assert unchunked(got.removeprefix(HEAD)) == up
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.backend.send, CHUNKED_ANSWER + chunked(down))
        answer = await received(line.peer.receive, lambda data: data.endswith(LAST))
    assert unchunked(answer.partition(b"\r\n\r\n")[2]) == down
    assert await line.ends() is None
    assert (line.traffic.received, line.traffic.sent) == (len(got), len(answer))
    assert line.gate.backend_is_reusable


@within(30)
async def test_both_sockets_serve_one_exchange_after_the_other(dial: Lines) -> None:
    line = await dial()
    for number in range(50):
        line.begin(asked("Content-Length: 2"))
        await line.peer.send(b"%02d" % number)
        assert await line.backend.receive_exactly(len(HEAD) + 2) == HEAD + b"%02d" % number
        await line.backend.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%02d" % number)
        head, body = await line.receive_answer()
        assert (head[:12], body) == (b"http/1.1 200", b"%02d" % number)
        assert await line.ends() is None
        assert line.gate.keeps_connection
        line.gate.next_request()


@within(30)
async def test_what_comes_behind_a_request_waits_for_its_own_decision(dial: Lines) -> None:
    line = await dial()
    line.begin(asked("Content-Length: 4"))
    await line.peer.send(b"body" + asked("Content-Length: 6") + b"second")
    assert await line.backend.receive_exactly(len(HEAD) + 4) == HEAD + b"body"
    await line.backend.send(ANSWER)
    assert await line.ends() is None
    assert line.traffic.received == len(HEAD) + 4
    line.gate.next_request()
    line.begin(b"")  # its head is there already; of its body all may be there or nothing
    assert await line.backend.receive_exactly(len(HEAD) + 6) == HEAD + b"second"


@within(30)
async def test_each_byte_of_an_answer_goes_on_at_once(dial: Lines) -> None:
    line = await dial()
    line.begin(asked())
    await line.backend.send(b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n")
    assert (await line.receive_answer())[1] == b""
    assert line.traffic.first_sent_at > 0
    for number in range(300):
        byte = bytes([number % 256])
        await line.backend.send(byte)
        assert await line.peer.receive() == byte
    assert await line.ends() is None


@within(30)
async def test_word_to_continue_goes_first_and_is_no_first_byte(dial: Lines) -> None:
    line = await dial()
    line.begin(asked("Content-Length: 4", "Expect: 100-continue"), to_peer=CONTINUE)
    assert await line.peer.receive_exactly(len(CONTINUE)) == CONTINUE
    assert line.traffic.first_sent_at == 0
    await line.peer.send(b"body")
    assert await line.backend.receive_exactly(len(HEAD) + 4) == HEAD + b"body"
    await line.backend.send(ANSWER)
    assert await line.ends() is None
    assert line.traffic.first_sent_at > 0


# Whoever does not read.


@within(60)
async def test_peer_that_does_not_read_stops_the_backend(dial: Lines) -> None:
    line = await dial(buffers=262144)
    data = os.urandom(16 * MIB)
    line.begin(asked())
    async with trio.open_nursery() as nursery:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data)
        nursery.start_soon(line.backend.send, head + data)
        await trio.testing.wait_all_tasks_blocked(0.1)
        stuck = line.backend.sent
        assert stuck < 6 * MIB
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert line.backend.sent == stuck
        _, body = await line.receive_answer()
        body += await line.peer.receive_exactly(len(data) - len(body))
    assert body == data
    assert await line.ends() is None


@within(60)
async def test_backend_that_does_not_read_stops_the_peer(dial: Lines) -> None:
    line = await dial(buffers=262144)
    data = os.urandom(16 * MIB)
    line.begin(asked(f"Content-Length: {len(data)}"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, data)
        await trio.testing.wait_all_tasks_blocked(0.1)
        stuck = line.peer.wire.sent
        assert stuck < 6 * MIB
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert line.peer.wire.sent == stuck
        # An answer gets through all the same.
        await line.backend.send(CHUNKED_ANSWER + b"5\r\nearly\r\n")
        head, body = await line.receive_answer()
        assert (b"connection: close" in head, body) == (True, b"5\r\nearly\r\n")
        got = await line.backend.receive_exactly(len(HEAD) + len(data))
    assert got[len(HEAD) :] == data
    await line.backend.send(b"0\r\n\r\n")
    assert await line.ends() is None


@within(60)
async def test_stuck_exchange_does_not_hold_up_another(dial: Lines) -> None:
    stuck, calm = await dial(buffers=262144), await dial()
    stuck.begin(asked())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stuck.backend.send, CHUNKED_ANSWER + chunked(b"x" * 16 * MIB))
        await trio.testing.wait_all_tasks_blocked(0.1)
        for _ in range(20):
            calm.begin(asked())
            assert await calm.backend.receive_exactly(len(HEAD)) == HEAD
            await calm.backend.send(ANSWER)
            assert (await calm.receive_answer())[1] == b"ok"
            assert await calm.ends() is None
            calm.gate.next_request()
        nursery.cancel_scope.cancel()


# A backend that breaks.


@pytest.mark.parametrize(
    ("begun", "reason"),
    [
        pytest.param(b"", "without an answer", id="nothing"),
        pytest.param(b"HTTP/1.1 200 O", "without an answer", id="half a head"),
        pytest.param(b"HTTP/1.1 103 Hints\r\n\r\n", "without an answer", id="an interim answer"),
        pytest.param(ANSWER[:-1], "in the middle", id="a length"),
        pytest.param(CHUNKED_ANSWER, "in the middle", id="no chunk"),
        pytest.param(CHUNKED_ANSWER + b"5\r\nhello\r\n", "in the middle", id="no last chunk"),
        pytest.param(CHUNKED_ANSWER + b"5\r\nhello\r\n0\r\n", "in the middle", id="half of it"),
    ],
)
@within(30)
async def test_answer_that_ends_too_early_is_the_backends_fault(
    dial: Lines, begun: bytes, reason: str
) -> None:
    line = await dial()
    line.begin(asked())
    await line.backend.receive_exactly(len(HEAD))
    if begun:
        await line.backend.send(begun)
    line.backend.end()
    error = await line.ends()
    assert isinstance(error, BackendError)
    assert reason in error.message
    assert not line.gate.keeps_connection


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n\r\nhalf", CHUNKED_ANSWER])
@within(30)
async def test_reset_is_the_backends_fault(dial: Lines, begun: bytes) -> None:
    line = await dial()
    line.begin(asked())
    await line.backend.receive_exactly(len(HEAD))
    if begun:
        await line.backend.send(begun)
        await line.receive_answer()
    line.backend.reset()
    error = await line.ends()
    assert isinstance(error, BackendError)
    assert "reset" in error.message


@within(30)
async def test_end_of_the_connection_ends_an_answer_of_no_length(dial: Lines) -> None:
    line = await dial()
    line.begin(asked())
    await line.backend.receive_exactly(len(HEAD))
    await line.backend.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
    assert (await line.receive_answer())[1] == b"9\r\nall of it\r\n"
    line.backend.end()
    assert await line.peer.receive_exactly(5) == b"0\r\n\r\n"
    assert await line.ends() is None
    assert line.gate.keeps_connection
    assert not line.gate.backend_is_reusable


@within(30)
async def test_broken_connection_does_not_end_an_answer_of_no_length(dial: Lines) -> None:
    """The write notices that the backend is gone; the read then finds an end like any other."""
    line = await dial(buffers=262144)
    size = 4 * MIB
    line.begin(asked(f"Content-Length: {2 * MOST}"), most=2 * MOST)
    # The answer fills the way to a peer that does not read, so nothing more of it is read.
    await line.backend.receive_exactly(len(HEAD))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.backend.send, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * size)
        await trio.testing.wait_all_tasks_blocked(0.1)
        nursery.cancel_scope.cancel()
    line.backend.reset()
    # What the peer sends on finds nobody.
    for _ in range(20):
        await line.peer.send(b"y" * 1000)
        await trio.testing.wait_all_tasks_blocked(0.005)
    got = bytearray()
    while not line.ended.is_set():
        with trio.move_on_after(0.2):
            got += await line.peer.receive()
    assert isinstance(line.error, BackendError), "half an answer looks like a whole one"
    assert not got.endswith(b"0\r\n\r\n")


@within(30)
async def test_answer_of_a_backend_that_refuses_the_body_is_delivered(dial: Lines) -> None:
    line = await dial(buffers=262144)
    line.begin(asked(f"Content-Length: {MOST}"))
    await line.backend.receive_exactly(len(HEAD))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, b"x" * 2 * MIB)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await line.backend.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!")
        line.backend.close()  # on unread bytes: a reset
        head, body = await line.receive_answer()
        assert (head[:12], body) == (b"http/1.1 413", b"no!")
        assert await line.ends() is None
        nursery.cancel_scope.cancel()
    assert line.traffic.undelivered
    assert not line.gate.keeps_connection


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
        pytest.param(CHUNKED_ANSWER + b"x", id="a chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", id="a length"),
    ],
)
@within(30)
async def test_answer_that_cannot_be_read_is_the_backends_fault(dial: Lines, answer: bytes) -> None:
    line = await dial()
    line.begin(asked())
    await line.backend.send(answer)
    assert isinstance(await line.ends(), BackendError)
    await line.backend.receive_exactly(len(HEAD))
    with pytest.raises(ConnectionResetError):
        await line.backend.receive()


# A peer that breaks, or asks for too much.


def fin(peer: Peer) -> None:
    peer.wire.end()


def rst(peer: Peer) -> None:
    peer.wire.reset()


async def close_notify(peer: Peer) -> None:
    await peer.send_end()


async def no_tls(peer: Peer) -> None:
    await peer.wire.send(b"\x17\x03\x03\x00\x20" + b"\0" * 32)


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n", CHUNKED_ANSWER])
@pytest.mark.parametrize("leave", [fin, rst, close_notify, no_tls])
@within(30)
async def test_peer_that_leaves_resets_the_backend(
    dial: Lines, leave: Callable[[Peer], Awaitable[None] | None], begun: bytes
) -> None:
    line = await dial()
    line.begin(asked())
    assert await line.backend.receive_exactly(len(HEAD)) == HEAD
    if begun:
        await line.backend.send(begun)
    if begun == CHUNKED_ANSWER:
        await line.receive_answer()
    if (leaving := leave(line.peer)) is not None:
        await leaving
    assert isinstance(await line.ends(), PeerLeftError)
    with pytest.raises(ConnectionResetError):
        await line.backend.receive()


@within(30)
async def test_peer_that_leaves_while_the_backend_sends_resets_it(dial: Lines) -> None:
    line = await dial(buffers=262144)
    line.begin(asked())

    async def send() -> None:
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            await line.backend.send(CHUNKED_ANSWER + chunked(b"x" * 16 * MIB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        line.peer.wire.reset()
    assert isinstance(await line.ends(), PeerLeftError)


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        pytest.param([b"5\r\nhello\r\n", b"6\r\nworld!\r\n"], 413, id="too long"),
        pytest.param([b"5\r\nhello\r\n", b"zz\r\n"], 400, id="no size"),
        pytest.param([b"5\r\nhello\r\n", b"5\r\nworldly\r\n"], 400, id="longer than its size"),
    ],
)
@within(30)
async def test_body_that_is_refused_on_its_way_resets_the_backend(
    dial: Lines, pieces: list[bytes], status: int
) -> None:
    line = await dial()
    line.begin(asked("Transfer-Encoding: chunked"), most=10)
    await line.peer.send(pieces[0])
    assert await line.backend.receive_exactly(len(HEAD) + 10) == HEAD + pieces[0]
    await line.peer.send(pieces[1])
    error = await line.ends()
    assert isinstance(error, HttpError)
    assert error.status == status
    with pytest.raises(ConnectionResetError):
        await line.backend.receive()


# Silence, and being told to stop.


@within(NEVER)
async def test_gap_below_the_limit_is_no_silence(
    dial: Lines, autojump_clock: trio.testing.MockClock
) -> None:
    line = await dial()
    line.begin(asked("Content-Length: 3"))
    await line.backend.receive_exactly(len(HEAD))
    autojump_clock.autojump_threshold = 0.02  # the kernel takes a moment to deliver
    for byte in (b"a", b"b", b"c"):
        await trio.sleep(290)
        await line.peer.send(byte)
        assert await line.backend.receive_exactly(1) == byte
    await trio.sleep(590)
    await line.backend.send(CHUNKED_ANSWER)
    await line.receive_answer()
    for _ in range(3):
        await trio.sleep(290)
        await line.backend.send(b"5\r\ntoken\r\n")
        assert await line.peer.receive() == b"5\r\ntoken\r\n"
    await line.backend.send(b"0\r\n\r\n")
    assert await line.ends() is None


@pytest.mark.parametrize(
    ("request_head", "answer", "waited"),
    [
        pytest.param(asked("Content-Length: 3"), b"", Waited.BODY, id="a body that does not come"),
        pytest.param(asked(), b"", Waited.ANSWER, id="an answer that does not come"),
        pytest.param(asked(), HINTS, Waited.ANSWER, id="an interim answer"),
        pytest.param(asked(), b"HTTP/1.1 200 OK\r\n", Waited.REST, id="half a head"),
        pytest.param(asked(), HALF_AN_ANSWER, Waited.REST, id="half an answer"),
        pytest.param(asked("Content-Length: 3"), HALF_AN_ANSWER, Waited.BODY, id="half of both"),
    ],
)
@within(NEVER)
async def test_gap_above_the_limit_ends_it(
    dial: Lines,
    autojump_clock: trio.testing.MockClock,
    request_head: bytes,
    answer: bytes,
    waited: Waited,
) -> None:
    line = await dial()
    line.begin(request_head)
    await line.backend.receive_exactly(len(HEAD))
    if answer:
        await line.backend.send(answer)
    begun = trio.current_time()
    autojump_clock.autojump_threshold = 0.02
    error = await line.ends()
    assert isinstance(error, SilenceError)
    what, key = waited.value
    seconds = {"between_bytes": 300, "first_byte": 600}[key]
    assert error.waited is waited
    assert str(error) == line.traffic.end == f"{what} for {seconds} s ([timeouts] {key})"
    assert seconds - 10 < trio.current_time() - begun < seconds + 30
    with pytest.raises(ConnectionResetError):
        await line.backend.receive()


@within(NEVER)
async def test_backend_that_reads_nothing_is_silent_and_not_the_peer(
    dial: Lines, autojump_clock: trio.testing.MockClock
) -> None:
    line = await dial(buffers=262144)
    line.begin(asked(f"Content-Length: {MOST}"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, b"x" * MOST)
        await trio.testing.wait_all_tasks_blocked(0.05)
        autojump_clock.autojump_threshold = 0.02
        error = await line.ends()
        nursery.cancel_scope.cancel()
    assert isinstance(error, SilenceError)
    assert (error.waited, error.seconds) == (Waited.ANSWER, 600)


@within(30)
async def test_cancelled_exchange_leaves_nothing_behind(dial: Lines) -> None:
    bystander = await dial()
    for _ in range(20):
        line = await dial()
        line.begin(asked())
        await line.backend.send(CHUNKED_ANSWER)
        await line.receive_answer()
        line.scope.cancel()
        assert await line.ends() is None
        assert line.traffic.end == "cut: shutting down"
        line.ours.sock.close()
        with pytest.raises(Cut):
            await line.peer.receive()
        bystander.begin(asked())
        await bystander.backend.receive_exactly(len(HEAD))
        await bystander.backend.send(ANSWER)
        assert (await bystander.receive_answer())[1] == b"ok"
        assert await bystander.ends() is None
        bystander.gate.next_request()


# A backend that ends its connection while the request is on its way.


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["end", "reset"])
@within(30)
async def test_end_before_the_answer_leaves_the_gate_as_it_was(
    dial: Lines, closing: ExitStack, how: str, when: str
) -> None:
    line = await dial()

    def leave() -> None:
        if how == "reset":
            line.backend.reset()
        else:
            line.backend.sock.close()

    if when == "before":
        leave()  # after the last look at it, and before a byte is sent
    line.begin(b"GET /x HTTP/1.1\r\nHost: m\r\n\r\n")
    if when == "after":
        assert await line.backend.receive_exactly(len(HEAD)) == HEAD
        leave()
    assert isinstance(await line.ends(), BackendError)
    assert not line.gate.answer_has_begun
    # The same request, on another connection.
    line.our_backend, line.backend = tcp_ends(closing)
    line.begin(b"")
    assert await line.backend.receive_exactly(len(HEAD)) == HEAD
    await line.backend.send(ANSWER)
    assert await line.ends() is None
    assert (await line.receive_answer())[1] == b"ok"
    assert line.gate.backend_is_reusable


# How slow a peer may be.


@pytest.mark.parametrize(
    ("pace", "said"),
    [
        pytest.param(Pace(), "the least is 1024 a second", id="a byte now and then"),
        pytest.param(Pace(100, 0), "not complete within 100 s", id="at whatever pace"),
    ],
)
@within(NEVER)
async def test_body_that_drips_does_not_hold_its_place(
    dial: Lines, autojump_clock: trio.testing.MockClock, pace: Pace, said: str
) -> None:
    line = await dial(pace=pace)
    line.begin(asked("Content-Length: 1000"))
    autojump_clock.autojump_threshold = 0.01
    begun, drips = trio.current_time(), 0
    with trio.move_on_after(1000):
        while not line.ended.is_set():
            await line.peer.send(b"x")
            drips += 1
            await trio.sleep(5)
    error = await line.ends()
    assert isinstance(error, HttpError)
    assert (error.status, said in str(error)) == (408, True)
    assert 25 < trio.current_time() - begun < 130


@within(NEVER)
async def test_honest_upload_over_bad_wifi_takes_its_time(
    dial: Lines, autojump_clock: trio.testing.MockClock
) -> None:
    """5 MiB at 50 kB a second, with two pauses of four minutes."""
    line = await dial(pace=Pace())
    line.begin(asked(f"Content-Length: {5 * MIB}"))
    autojump_clock.autojump_threshold = 0.01
    await line.backend.receive_exactly(len(HEAD))
    piece, received = b"x" * 65536, 0
    for number in range(5 * MIB // len(piece)):
        await line.peer.send(piece)
        received += len(await line.backend.receive_exactly(len(piece)))
        await trio.sleep(240 if number in (20, 40) else 1.3)
    assert received == 5 * MIB
    await line.backend.send(ANSWER)
    assert await line.ends() is None


@within(NEVER)
async def test_backend_that_does_not_read_is_not_the_peers_fault(
    dial: Lines, autojump_clock: trio.testing.MockClock
) -> None:
    line = await dial(buffers=32768, pace=Pace(body_seconds=50))
    size = 2 * MIB
    autojump_clock.autojump_threshold = float("inf")
    line.begin(asked(f"Content-Length: {size}"))
    line.nursery.start_soon(line.peer.send, b"x" * size)
    await trio.testing.wait_all_tasks_blocked(0.3)  # until the backend's buffers are full
    autojump_clock.autojump_threshold = 0.01
    await trio.sleep(250)  # nothing is read, and the time is not the peer's
    assert not line.ended.is_set()
    autojump_clock.autojump_threshold = float("inf")
    await line.backend.receive_exactly(len(HEAD) + size)
    await line.backend.send(ANSWER)
    assert await line.ends() is None


@within(NEVER)
async def test_peer_that_reads_by_the_byte_does_not_hold_its_place(
    dial: Lines, autojump_clock: trio.testing.MockClock
) -> None:
    line = await dial(buffers=4096, pace=Pace())
    line.begin(asked())
    autojump_clock.autojump_threshold = 0.01

    async def answer() -> None:
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            await line.backend.send(CHUNKED_ANSWER + chunked(b"x" * MIB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        with trio.move_on_after(10_000):
            while not line.ended.is_set():
                await trio.sleep(100)
                with suppress(OSError):
                    await line.peer.wire.receive_exactly(1)
        assert line.ended.is_set()
    error = await line.ends()
    assert isinstance(error, PeerCutError)
    assert "reads too slowly" in str(error)
