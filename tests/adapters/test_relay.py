"""Bytes between peer and backend: the same on both sides, whoever is slow, ends or breaks."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from sidecar.adapters.relay import Relay, Traffic
from sidecar.adapters.relay.arrival import unacknowledged
from sidecar.adapters.tls import ServerIdentity, TlsStream
from tests.adapters.deadlines import within
from tests.adapters.tls_ends import Cut, Peer, Wire, admit, tcp_ends
from tests.ca import Authority
from tests.client import client_context

MIB = 1024 * 1024
RECORD = 16384
GONE = r"reset|[Bb]roken pipe"
# Real deadlines are useless where the clock jumps.
NEVER = 1e9


@dataclass
class Line:
    """One relayed connection: the peer, the backend's end, and what the relay said."""

    peer: Peer
    backend: Wire
    ours: TlsStream
    our_backend: socket.socket
    traffic: Traffic = field(default_factory=Traffic)
    ended: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self, relay: Relay) -> None:
        """As `connection` does it: whatever happens, both sockets are closed at the end."""
        with self.ours.sock, self.our_backend, self.scope:
            await relay.relay(self.ours, self.our_backend, self.traffic)
        self.ended.set()


Lines = Callable[..., Awaitable[Line]]


@pytest.fixture
def relay(nursery: trio.Nursery) -> Relay:
    """A relay that runs; silence is ended after 300 s."""
    relay = Relay(300, 600)
    nursery.start_soon(relay.run)
    return relay


@pytest.fixture
def dial(
    relay: Relay,
    nursery: trio.Nursery,
    closing: ExitStack,
    identity: ServerIdentity,
    authority: Authority,
    folder: Path,
) -> Lines:
    """Open a relayed connection; `buffers` are the bytes that each socket holds."""
    context = client_context(authority, authority.sign(authority.leaf("/peer")), folder)

    async def open_line(buffers: int = 0, *, begin: bool = True) -> Line:
        ours, wire = tcp_ends(closing)
        our_backend, backend = tcp_ends(closing)
        if buffers:
            for sock in (ours, wire.sock, our_backend, backend.sock):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        peer = Peer(wire, context)
        stream = await admit(ours, identity, peer)
        line = Line(peer, backend, stream, our_backend)
        if begin:
            nursery.start_soon(line.run, relay)
        return line

    return open_line


async def expect(receive: Callable[[int], Awaitable[bytes]], data: bytes) -> None:
    got = await receive(len(data))
    assert got == data, "the bytes are not those that were sent"  # not 16 MiB of difference


async def send_until_broken(send: Callable[[bytes], Awaitable[None]]) -> None:
    """Send without end; the connection must break under it."""

    async def send_on() -> None:
        while True:
            await send(b"x" * 65536)

    with pytest.raises(OSError, match=GONE):
        await send_on()


# Bytes.


@within(60)
async def test_bytes_are_the_same_both_ways_at_once(dial: Lines) -> None:
    line = await dial()
    up, down = os.urandom(16 * MIB), os.urandom(16 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, up)
        nursery.start_soon(line.backend.send, down)
        nursery.start_soon(expect, line.backend.receive_exactly, up)
        nursery.start_soon(expect, line.peer.receive_exactly, down)
    await line.peer.send_end()
    line.backend.end()
    await line.ended.wait()
    assert line.traffic == Traffic(len(up), len(down), "closed")


@within(60)
async def test_single_bytes_arrive_in_order_and_none_waits_for_the_next(dial: Lines) -> None:
    line = await dial()
    for number in range(1000):
        byte = bytes([number % 256])
        await line.peer.send(byte)
        assert await line.backend.receive_exactly(1) == byte
        await line.backend.send(byte)
        assert await line.peer.receive_exactly(1) == byte


@within(60)
async def test_many_single_bytes_in_a_row_arrive_in_order(dial: Lines) -> None:
    line = await dial()
    data = os.urandom(3000)

    async def trickle(send: Callable[[bytes], Awaitable[None]]) -> None:
        for number in range(len(data)):
            await send(data[number : number + 1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle, line.peer.send)
        nursery.start_soon(trickle, line.backend.send)
        nursery.start_soon(expect, line.backend.receive_exactly, data)
        nursery.start_soon(expect, line.peer.receive_exactly, data)


@pytest.mark.parametrize(
    "size", [1, RECORD - 1, RECORD, RECORD + 1, 2 * RECORD, 16 * RECORD, 16 * RECORD + 1]
)
@within(30)
async def test_sizes_around_a_record_and_the_buffer_arrive_whole(dial: Lines, size: int) -> None:
    line = await dial()
    data = os.urandom(size)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, data)
        await expect(line.backend.receive_exactly, data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.backend.send, data)
        await expect(line.peer.receive_exactly, data)


# The end of one direction.


@pytest.mark.parametrize("size", [0, 1, RECORD - 1, RECORD, 2 * RECORD, 16 * RECORD, 3 * MIB])
@within(30)
async def test_answer_follows_after_the_peer_has_ended_its_request(dial: Lines, size: int) -> None:
    line = await dial()
    request, answer = os.urandom(size), os.urandom(size + 1)

    async def ask() -> None:
        await line.peer.send(request)
        await line.peer.send_end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        assert await line.backend.receive_all() == request
    assert not line.ended.is_set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.backend.send, answer)
        await expect(line.peer.receive_exactly, answer)
    line.backend.end()
    assert await line.peer.receive() == b""
    await line.ended.wait()
    assert line.traffic == Traffic(size, size + 1, "closed")


@pytest.mark.parametrize("size", [0, 1, RECORD, 3 * MIB])
@within(30)
async def test_request_goes_on_after_the_backend_has_ended_its_answer(
    dial: Lines, size: int
) -> None:
    line = await dial()
    request, answer = os.urandom(size + 1), os.urandom(size)

    async def reply() -> None:
        await line.backend.send(answer)
        line.backend.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reply)
        assert await line.peer.receive_all() == answer
    assert not line.ended.is_set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, request)
        await expect(line.backend.receive_exactly, request)
    await line.peer.send_end()
    assert await line.backend.receive() == b""
    await line.ended.wait()
    assert line.traffic == Traffic(size + 1, size, "closed")


@within(30)
async def test_end_comes_only_after_what_a_slow_backend_has_not_read_yet(dial: Lines) -> None:
    line = await dial(buffers=262144)
    data = os.urandom(8 * MIB)

    async def ask() -> None:
        await line.peer.send(data)
        await line.peer.send_end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await line.backend.receive_all() == data


@within(30)
async def test_end_that_comes_with_the_last_bytes_waits_for_them(dial: Lines) -> None:
    line = await dial()
    # Little fits at a time, so that bytes are left when the end is already known.
    line.our_backend.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = os.urandom(64 * RECORD)
    await line.peer.send(data)
    await line.peer.send_end()
    assert await line.backend.receive_all() == data
    line.backend.end()
    await line.ended.wait()
    assert line.traffic == Traffic(len(data), 0, "closed")


@within(30)
async def test_end_comes_only_after_what_a_slow_peer_has_not_read_yet(dial: Lines) -> None:
    line = await dial(buffers=262144)
    data = os.urandom(8 * MIB)

    async def reply() -> None:
        await line.backend.send(data)
        line.backend.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reply)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await line.peer.receive_all() == data


# Back-pressure.


@within(60)
async def test_peer_that_does_not_read_stops_the_backend(dial: Lines) -> None:
    line = await dial(buffers=262144)
    data = os.urandom(16 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.backend.send, data)
        await trio.testing.wait_all_tasks_blocked(0.1)
        stuck = line.backend.sent
        # Four sockets' buffers and one of ours; nothing that grows.
        assert stuck < 6 * MIB
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert line.backend.sent == stuck
        assert not line.ended.is_set()
        # The other direction does not mind.
        await line.peer.send(b"still there?")
        assert await line.backend.receive_exactly(12) == b"still there?"
        await expect(line.peer.receive_exactly, data)


@within(60)
async def test_backend_that_does_not_read_stops_the_peer(dial: Lines) -> None:
    line = await dial(buffers=262144)
    data = os.urandom(16 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, data)
        await trio.testing.wait_all_tasks_blocked(0.1)
        stuck = line.peer.wire.sent
        assert stuck < 6 * MIB
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert line.peer.wire.sent == stuck
        await line.backend.send(b"still there?")
        assert await line.peer.receive_exactly(12) == b"still there?"
        await expect(line.backend.receive_exactly, data)


@within(60)
async def test_both_ways_stuck_at_once_get_going_again(dial: Lines) -> None:
    line = await dial(buffers=262144)
    up, down = os.urandom(16 * MIB), os.urandom(4 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.peer.send, up)
        nursery.start_soon(line.backend.send, down)
        await trio.testing.wait_all_tasks_blocked(0.1)
        nursery.start_soon(expect, line.backend.receive_exactly, up)
        nursery.start_soon(expect, line.peer.receive_exactly, down)


@within(60)
async def test_busy_and_stuck_connections_do_not_hold_up_another(dial: Lines) -> None:
    stuck, busy, calm = await dial(buffers=262144), await dial(), await dial()

    async def flood() -> None:
        while True:
            await busy.peer.send(b"x" * MIB)

    async def swallow() -> None:
        while True:
            await busy.backend.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stuck.backend.send, b"x" * 16 * MIB)
        nursery.start_soon(flood)
        nursery.start_soon(swallow)
        for number in range(50):
            word = b"%02d" % number
            await calm.peer.send(word)
            assert await calm.backend.receive_exactly(2) == word
            await calm.backend.send(word)
            assert await calm.peer.receive_exactly(2) == word
        assert busy.traffic.received > MIB
        nursery.cancel_scope.cancel()


# One side breaks.


@within(30)
async def test_backend_that_resets_is_no_clean_end_for_the_peer(dial: Lines) -> None:
    line = await dial()
    await line.backend.send(b"half an ans")
    assert await line.peer.receive_exactly(11) == b"half an ans"
    line.backend.reset()
    await line.ended.wait()
    assert line.traffic == Traffic(0, 11, "backend: Connection reset by peer")
    with pytest.raises(Cut):
        await line.peer.receive()


@within(30)
async def test_backend_that_closes_on_unread_bytes_is_no_clean_end_for_the_peer(
    dial: Lines,
) -> None:
    line = await dial()
    await line.peer.send(b"a request that nobody reads")
    await trio.lowlevel.wait_readable(line.backend.sock)
    line.backend.close()  # the kernel resets: bytes were unread
    await line.ended.wait()
    assert line.traffic.end.startswith("backend: ")
    with pytest.raises(Cut):
        await line.peer.receive()


@within(30)
async def test_backend_that_goes_away_during_an_upload_ends_the_connection(dial: Lines) -> None:
    line = await dial(buffers=262144)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_until_broken, line.peer.send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        line.backend.reset()
    await line.ended.wait()
    assert line.traffic.end.startswith("backend: ")


@within(30)
async def test_end_without_close_notify_is_truncated_though_the_backend_has_ended(
    dial: Lines,
) -> None:
    line = await dial()
    await line.backend.send(b"all of it")
    line.backend.end()
    assert await line.peer.receive_exactly(9) == b"all of it"
    assert await line.peer.receive() == b""
    await line.peer.send(b"half a requ")
    line.peer.wire.end()
    assert await line.backend.receive_exactly(11) == b"half a requ"
    with pytest.raises(ConnectionResetError):
        await line.backend.receive()
    await line.ended.wait()
    assert line.traffic == Traffic(11, 9, "peer: ended without close_notify")


@within(30)
async def test_peer_that_ends_without_close_notify_drops_the_backend(dial: Lines) -> None:
    line = await dial()
    await line.peer.send(b"half a requ")
    assert await line.backend.receive_exactly(11) == b"half a requ"
    line.peer.wire.end()
    await line.ended.wait()
    assert line.traffic == Traffic(11, 0, "peer: ended without close_notify")
    # Not half-closed: an answer is not taken any more.
    await send_until_broken(line.backend.send)


@within(30)
async def test_peer_that_resets_drops_the_backend(dial: Lines) -> None:
    line = await dial()
    await line.peer.send(b"half a requ")
    assert await line.backend.receive_exactly(11) == b"half a requ"
    line.peer.wire.reset()
    await line.ended.wait()
    assert line.traffic.end.startswith("peer: ")
    await send_until_broken(line.backend.send)


@within(30)
async def test_peer_that_goes_away_while_the_backend_sends_drops_the_backend(dial: Lines) -> None:
    line = await dial(buffers=262144)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_until_broken, line.backend.send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        line.peer.wire.reset()
    await line.ended.wait()
    assert line.traffic.end.startswith("peer: ")


@within(30)
async def test_peer_that_ended_and_then_left_is_noticed_when_the_answer_comes(
    dial: Lines,
) -> None:
    line = await dial()
    await line.peer.send(b"request")
    await line.peer.send_end()
    assert await line.backend.receive_all() == b"request"
    line.peer.wire.reset()
    await send_until_broken(line.backend.send)
    await line.ended.wait()
    assert line.traffic.end.startswith("peer: ")


@within(30)
async def test_bytes_that_are_no_tls_break_the_connection(dial: Lines) -> None:
    line = await dial()
    await line.peer.wire.send(b"\x17\x03\x03\x00\x20" + b"\0" * 32)
    await line.ended.wait()
    assert line.traffic.end.startswith("peer: ")
    assert line.traffic.received == 0
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        await line.peer.receive()


# Silence, and being told to stop.


@pytest.mark.parametrize(
    ("last", "seconds"),
    [
        pytest.param("peer", 600, id="a backend that may have a model to load"),
        pytest.param("backend", 300, id="a peer that asks nothing more"),
    ],
)
@within(NEVER)
async def test_silence_both_ways_is_ended(
    dial: Lines, autojump_clock: trio.testing.MockClock, last: str, seconds: int
) -> None:
    line = await dial()
    await line.peer.send(b"hello")
    assert await line.backend.receive_exactly(5) == b"hello"
    if last == "backend":
        await line.backend.send(b"hi")
        assert await line.peer.receive_exactly(2) == b"hi"
    begun = trio.current_time()
    autojump_clock.autojump_threshold = 0.02  # the kernel takes a moment to deliver
    await line.ended.wait()
    sent = 2 if last == "backend" else 0
    assert line.traffic == Traffic(5, sent, f"no byte for {seconds} s")
    assert seconds - 10 < trio.current_time() - begun < seconds + 30
    with pytest.raises(Cut):
        await line.peer.receive()


@pytest.mark.parametrize("direction", ["to the backend", "to the peer"])
@within(NEVER)
async def test_bytes_one_way_are_no_silence(
    dial: Lines, autojump_clock: trio.testing.MockClock, direction: str
) -> None:
    line = await dial()
    autojump_clock.autojump_threshold = 0.02
    for _ in range(5):
        await trio.sleep(250)
        if direction == "to the backend":
            await line.peer.send(b"x")
            assert await line.backend.receive_exactly(1) == b"x"
        else:
            await line.backend.send(b"x")
            assert await line.peer.receive_exactly(1) == b"x"
    assert not line.ended.is_set()
    await line.ended.wait()


@within(NEVER)
async def test_shorter_time_of_silence_is_looked_for_at_once(
    relay: Relay, dial: Lines, autojump_clock: trio.testing.MockClock
) -> None:
    relay.set_deadlines(86400, 86400)
    line = await dial()
    await trio.testing.wait_all_tasks_blocked(0.05)
    begun = trio.current_time()
    relay.set_deadlines(10, 86400)
    autojump_clock.autojump_threshold = 0.02
    await line.ended.wait()
    assert trio.current_time() - begun < 12


@within(NEVER)
async def test_peer_that_reads_nothing_is_silent(
    dial: Lines, autojump_clock: trio.testing.MockClock
) -> None:
    line = await dial(buffers=262144)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_until_broken, line.backend.send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        autojump_clock.autojump_threshold = 0.02
        await line.ended.wait()
    assert line.traffic.end == "no byte for 300 s"


@within(NEVER)
async def test_peer_that_reads_slowly_what_the_kernel_holds_is_not_silent(
    dial: Lines, mock_clock: trio.testing.MockClock
) -> None:
    line = await dial()
    # The peer's kernel takes little, ours all the rest: nothing of it is left to the relay.
    line.peer.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    line.ours.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
    await line.backend.send(b"x" * 400_000)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert unacknowledged(line.ours.sock)
    for _ in range(3):
        mock_clock.jump(250)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not line.ended.is_set()
        await line.peer.wire.receive_exactly(100_000)
    mock_clock.jump(250)
    await trio.testing.wait_all_tasks_blocked(0.05)
    mock_clock.jump(301)
    await line.ended.wait()


@within(30)
async def test_cancelled_relay_is_a_cut_for_both(dial: Lines) -> None:
    line = await dial()
    await line.backend.send(b"half an ans")
    assert await line.peer.receive_exactly(11) == b"half an ans"
    line.scope.cancel()
    await line.ended.wait()
    assert line.traffic.end == "cut: shutting down"
    with pytest.raises(Cut):
        await line.peer.receive()


@within(60)
async def test_descriptors_are_used_again_without_mixing_up_connections(dial: Lines) -> None:
    """Numbers of closed sockets come back at once; what was watched for must be forgotten."""
    bystander = await dial()
    for number in range(60):
        line = await dial()
        word = b"%02d" % number
        await line.peer.send(word)
        assert await line.backend.receive_exactly(2) == word
        ending = (
            line.backend.reset,
            line.peer.wire.reset,
            line.peer.wire.end,
            line.scope.cancel,
        )[number % 4]
        ending()
        await line.ended.wait()
        line.peer.wire.close()
        line.backend.close()
        await bystander.backend.send(word)
        assert await bystander.peer.receive_exactly(2) == word
    assert not bystander.ended.is_set()


@within(30)
async def test_relay_that_cannot_begin_leaves_nothing_behind(dial: Lines, relay: Relay) -> None:
    """A socket that cannot be watched (here: a closed one) fails one connection, not the next."""
    low = [os.dup(0), os.dup(0)]
    unlucky = await dial(begin=False)
    number = unlucky.ours.sock.fileno()
    unlucky.our_backend.close()
    with pytest.raises(ValueError, match="file descriptor"):
        await relay.relay(unlucky.ours, unlucky.our_backend, unlucky.traffic)
    unlucky.ours.sock.close()
    # The next connection gets the number that has just become free: two others come before it.
    filled = []
    while (filler := os.dup(0)) < number:
        filled.append(filler)
    for one in (filler, *low):
        os.close(one)
    line = await dial()
    for one in filled:
        os.close(one)
    assert line.ours.sock.fileno() == number
    await line.peer.send(b"hello")
    assert await line.backend.receive_exactly(5) == b"hello"
