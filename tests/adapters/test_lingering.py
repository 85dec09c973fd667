"""A lingering close: what was said last is read by who still sends; nobody is waited for long."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress

import pytest
import trio

from sidecar.adapters.lingering import Lingering
from tests.adapters.deadlines import within
from tests.adapters.tls_ends import Wire, tcp_ends

LAST_WORDS = b"413"


async def _close(sock: socket.socket, lingering: Lingering, done: trio.Event) -> None:
    with sock:
        await lingering.close(sock)
    done.set()


@within(30)
async def test_peer_that_reads_after_its_upload_finds_the_answer(
    closing: ExitStack, nursery: trio.Nursery
) -> None:
    ours, peer = tcp_ends(closing)
    done = trio.Event()
    ours.send(LAST_WORDS)
    nursery.start_soon(_close, ours, Lingering(4), done)
    await peer.send(b"x" * 30_000_000)  # no buffer on the way holds that
    assert await peer.receive_all() == LAST_WORDS
    peer.end()
    await done.wait()


async def test_silent_peer_is_waited_for_five_seconds(
    closing: ExitStack, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = tcp_ends(closing)
    done, started = trio.Event(), trio.current_time()
    nursery.start_soon(_close, ours, Lingering(4), done)
    await done.wait()
    assert trio.current_time() - started == pytest.approx(5)
    assert await peer.receive_all() == b""


async def test_drip_of_bytes_is_read_for_thirty_seconds(
    closing: ExitStack, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = tcp_ends(closing)
    done, started = trio.Event(), trio.current_time()
    nursery.start_soon(_close, ours, Lingering(4), done)

    async def drip() -> None:
        while True:
            await peer.send(b"x")
            await trio.sleep(3)

    nursery.start_soon(drip)
    await done.wait()
    nursery.cancel_scope.cancel()
    assert trio.current_time() - started == pytest.approx(30)


@within(30)
async def test_flood_is_read_up_to_a_bound(closing: ExitStack, nursery: trio.Nursery) -> None:
    ours, peer = tcp_ends(closing)
    done = trio.Event()
    nursery.start_soon(_close, ours, Lingering(4), done)

    async def flood() -> None:
        with suppress(ConnectionError):
            while True:
                await peer.send(b"x" * 1_000_000)

    nursery.start_soon(flood)
    await done.wait()
    assert peer.sent >= 256 * 1024 * 1024


@within(30)
async def test_oldest_makes_room(closing: ExitStack, nursery: trio.Nursery) -> None:
    lingering = Lingering(2)
    done = [trio.Event() for _ in range(3)]
    peers: list[Wire] = []
    for event in done:
        ours, peer = tcp_ends(closing)
        peers.append(peer)
        nursery.start_soon(_close, ours, lingering, event)
        assert await peer.receive() == b""  # our end: it lingers
    await done[0].wait()
    assert not done[1].is_set()
    assert not done[2].is_set()
    for peer in peers:
        peer.close()
    for event in done:
        await event.wait()


async def test_drain_shortens_it(
    closing: ExitStack, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    lingering, started = Lingering(4), trio.current_time()
    done = [trio.Event() for _ in range(2)]
    first, _peer = tcp_ends(closing)
    second, _other = tcp_ends(closing)
    nursery.start_soon(_close, first, lingering, done[0])
    await trio.testing.wait_all_tasks_blocked()
    lingering.hurry()
    nursery.start_soon(_close, second, lingering, done[1])
    await done[1].wait()
    assert trio.current_time() - started == pytest.approx(0.2)  # it is silent
    await done[0].wait()
    assert trio.current_time() - started == pytest.approx(1)


async def test_place_is_taken_while_close_notify_waits_for_a_peer_that_does_not_read(
    closing: ExitStack, nursery: trio.Nursery
) -> None:
    lingering, done = Lingering(1), trio.Event()
    full, _peer = tcp_ends(closing)
    with suppress(BlockingIOError):
        while True:
            full.send(b"x" * 65536)

    async def close() -> None:
        with full:
            await lingering.close(full, lambda: False)
        done.set()

    nursery.start_soon(close)
    await trio.testing.wait_all_tasks_blocked()
    newer, other = tcp_ends(closing)
    nursery.start_soon(_close, newer, lingering, trio.Event())
    with trio.fail_after(10):
        await done.wait()
    other.close()
