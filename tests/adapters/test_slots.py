"""Places for handshakes and connections: nothing that is slow or greedy keeps others out."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sidecar.adapters.slots import Slots
from sidecar.core.spiffe_id import SpiffeId
from tests.adapters.deadlines import within

A, B, C = (SpiffeId.parse(f"spiffe://example.org/{name}") for name in "abc")


@within(20)
async def test_oldest_handshake_gives_way_to_the_newest() -> None:
    slots = Slots(maximum=10, maximum_handshakes=2)
    given_way: list[int] = []

    async def slow(number: int) -> None:
        with slots.handshake() as slot:
            await trio.Event().wait()
        if slot.cancelled_caught:
            given_way.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(slow, number)
            await trio.testing.wait_all_tasks_blocked()
            assert given_way == list(range(max(0, number - 1)))
        nursery.cancel_scope.cancel()


@within(20)
async def test_handshake_that_is_done_frees_its_slot() -> None:
    slots = Slots(maximum=10, maximum_handshakes=1)
    for _ in range(3):
        with slots.handshake() as slot:
            await trio.lowlevel.checkpoint()
        assert not slot.cancelled_caught


@within(20)
async def test_handshake_that_fails_frees_its_slot() -> None:
    slots = Slots(maximum=10, maximum_handshakes=1)

    async def fail() -> None:
        with slots.handshake():
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await fail()
    with slots.handshake() as slot:
        await trio.lowlevel.checkpoint()
    assert not slot.cancelled_caught


@within(20)
async def test_flood_of_silent_peers_does_not_keep_an_honest_one_out() -> None:
    slots = Slots(maximum=10, maximum_handshakes=8)

    async def silent() -> None:
        with slots.handshake():
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(silent)
        await trio.testing.wait_all_tasks_blocked()
        with slots.handshake() as honest:
            for _ in range(7):  # so many may come while it is at it
                nursery.start_soon(silent)
                await trio.testing.wait_all_tasks_blocked()
        assert not honest.cancelled_caught
        nursery.cancel_scope.cancel()


@within(20)
async def test_flood_of_one_host_ends_its_own_handshakes_and_no_slow_one_of_another() -> None:
    slots = Slots(maximum=10, maximum_handshakes=8)

    async def silent(host: str) -> None:
        with slots.handshake(host):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with slots.handshake("192.0.2.1") as slow:
            for _ in range(100):
                nursery.start_soon(silent, "192.0.2.2")
            await trio.testing.wait_all_tasks_blocked()
            assert slots.handshakes == 8
        assert not slow.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_handshakes_have_a_moment_in_the_drain(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slots = Slots(maximum=10, maximum_handshakes=8)
    with slots.handshake() as before:
        await trio.sleep(5)
        slots.drain()
        begun = trio.current_time()
        await trio.sleep(5)
    with slots.handshake() as after:
        await trio.sleep(5)
    assert before.cancelled_caught
    assert after.cancelled_caught
    assert trio.current_time() - begun < 2


class Held:
    """Connections that are held until told to end."""

    def __init__(self, slots: Slots, nursery: trio.Nursery) -> None:
        self.slots, self._nursery = slots, nursery
        self.ends: dict[SpiffeId, list[trio.Event]] = {}
        self.refused: list[tuple[SpiffeId, str]] = []
        self.asked: list[tuple[SpiffeId, bool]] = []

    async def open(self, peer: SpiffeId, most: int | None = None) -> None:
        self._nursery.start_soon(self._hold, peer, most)
        await trio.testing.wait_all_tasks_blocked()

    async def _hold(self, peer: SpiffeId, most: int | None) -> None:
        async with self.slots.connection(
            peer, most, lambda peer, is_full: self.asked.append((peer, is_full))
        ) as refused:
            if refused:
                self.refused.append((peer, refused))
                return
            end = trio.Event()
            self.ends.setdefault(peer, []).append(end)
            await end.wait()

    async def end(self, peer: SpiffeId) -> None:
        self.ends[peer].pop(0).set()
        await trio.testing.wait_all_tasks_blocked()


async def test_connection_above_the_maximum_waits_a_moment_and_is_refused(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    held = Held(Slots(2, 1), nursery)
    for peer in (A, B, C):
        await held.open(peer)
    assert held.asked == [(C, True)]
    assert held.refused == []
    await trio.sleep(2)
    assert held.refused == [(C, "too many connections")]
    assert held.slots.connections == 2


@within(20)
async def test_connection_that_waits_takes_the_place_of_one_that_ends(
    nursery: trio.Nursery,
) -> None:
    held = Held(Slots(1, 1), nursery)
    await held.open(A)
    await held.open(B)
    await held.end(A)
    assert held.refused == []
    assert (held.slots.connections_of(A), held.slots.connections_of(B)) == (0, 1)
    await held.end(B)
    assert held.slots.connections == 0


@pytest.mark.parametrize(
    ("of_one_peer", "most", "wanted"),
    [
        pytest.param(3, None, 3, id="its share"),
        pytest.param(3, 2, 2, id="what its rule says"),
        pytest.param(3, 9, 3, id="its share where its rule says more"),
    ],
)
async def test_peer_has_no_more_than_its_share_and_others_have_the_rest(
    of_one_peer: int,
    most: int | None,
    wanted: int,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    held = Held(Slots(4, 1, of_one_peer), nursery)
    for _ in range(6):
        await held.open(A, most)
    await held.open(B)
    await trio.sleep(2)
    assert (held.slots.connections_of(A), held.slots.connections_of(B)) == (wanted, 1)
    assert set(held.refused) == {(A, "too many connections of this peer")}
    assert len(held.refused) == 6 - wanted


@within(20)
async def test_connection_that_fails_frees_its_slot() -> None:
    slots = Slots(maximum=1, maximum_handshakes=1)
    with pytest.raises(ConnectionError):
        async with slots.connection(A):
            raise ConnectionError
    assert slots.connections == 0


async def test_greedy_peer_that_waits_in_numbers_leaves_others_a_place_to_wait(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    held = Held(Slots(2, 1, 1), nursery)
    for _ in range(200):
        await held.open(A)
    await held.open(B)
    assert held.slots.connections_of(B) == 1
