"""Counts by peer: nobody is lost, nobody can make them grow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.peer_counts import MAX_PEERS, OTHER, PeerCounts, Peers
from sidecar.core.spiffe_id import SpiffeId

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def peer(number: int) -> SpiffeId:
    return SpiffeId.parse(f"spiffe://example.org/{number}")


def at(seconds: int) -> datetime:
    return NOON + timedelta(seconds=seconds)


def names(peers: Peers) -> list[str]:
    return [counts.name for counts in peers]


def test_connections_of_one_peer_are_counted_together() -> None:
    peers = Peers()
    first, second = peers.connected(peer(1), at(0)), peers.connected(peer(1), at(1))
    assert first is second
    assert first.connections == 2
    peers.disconnected(second, at(5))
    assert (first.connections, first.last_seen) == (1, at(5))


def test_peer_that_comes_back_finds_its_counts() -> None:
    peers = Peers()
    counts = peers.connected(peer(1), at(0))
    counts.requests = 7
    peers.disconnected(counts, at(1))
    assert peers.connected(peer(1), at(2)).requests == 7


def test_one_peer_too_many_takes_the_place_of_who_is_away_for_longest() -> None:
    peers = Peers(3)
    counts = [peers.connected(peer(number), at(number)) for number in range(3)]
    counts[1].requests, counts[1].sent = 5, 100
    peers.disconnected(counts[1], at(10))
    peers.disconnected(counts[2], at(11))
    peers.connected(peer(3), at(12))
    assert names(peers) == [str(peer(0)), str(peer(2)), str(peer(3)), OTHER]
    *_, other = peers
    assert (other.requests, other.sent, other.connections, other.last_seen) == (5, 100, 0, at(10))


def test_nobody_with_a_connection_loses_its_place() -> None:
    peers = Peers(2)
    kept = [peers.connected(peer(number), at(number)) for number in range(2)]
    newcomers = [peers.connected(peer(number), at(9)) for number in range(2, 50)]
    assert names(peers) == [str(peer(0)), str(peer(1)), OTHER]
    assert {id(one) for one in newcomers} == {id(newcomers[0])}
    assert newcomers[0].connections == 48
    assert [one.connections for one in kept] == [1, 1]
    for one in newcomers:
        peers.disconnected(one, at(10))
    assert newcomers[0].connections == 0


def test_there_are_never_more_than_the_maximum_and_the_others() -> None:
    peers = Peers()
    for number in range(2 * MAX_PEERS):
        peers.disconnected(peers.connected(peer(number), at(number)), at(number))
    assert len(names(peers)) == MAX_PEERS + 1 == 257


def test_request_in_the_queue_does_not_run() -> None:
    counts = PeerCounts("a", NOON, running=2)
    with counts.queue():
        assert (counts.running, counts.queued) == (1, 1)
    assert (counts.running, counts.queued) == (2, 0)


def test_request_that_gives_up_in_the_queue_is_in_it_no_more() -> None:
    counts = PeerCounts("a", NOON, running=1)
    try:
        with counts.queue():
            raise KeyError
    except KeyError:
        assert (counts.running, counts.queued) == (1, 0)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 7)))
def test_sums_hold_whatever_comes_and_goes(peers_that_come_or_go: list[int]) -> None:
    peers = Peers(3)
    here: dict[int, list[PeerCounts]] = {}
    requests = 0
    for second, number in enumerate(peers_that_come_or_go):
        mine = here.setdefault(number, [])
        if len(mine) == 2:
            peers.disconnected(mine.pop(0), at(second))
        else:
            mine.append(peers.connected(peer(number), at(second)))
            mine[-1].requests += 1
            requests += 1
    assert sum(counts.connections for counts in peers) == sum(map(len, here.values()))
    assert sum(counts.requests for counts in peers) == requests
    assert len(names(peers)) <= 4
