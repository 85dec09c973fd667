"""The latest refusals: few of them, each once, and who is proven is told apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sidecar.core.recent_refusals import MAX_REFUSALS, RecentRefusals
from sidecar.core.spiffe_id import SpiffeId

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=1)
TRAEFIK = SpiffeId.parse("spiffe://example.org/traefik")


def test_latest_is_first() -> None:
    refusals = RecentRefusals()
    refusals.add(NOON, "10.0.0.1:1", "'a'", "no")
    refusals.add(LATER, "10.0.0.2:1", "'b'", "no")
    assert [(one.address, one.at) for one in refusals] == [
        ("10.0.0.2:1", LATER),
        ("10.0.0.1:1", NOON),
    ]


def test_only_the_latest_are_kept() -> None:
    refusals = RecentRefusals()
    for number in range(MAX_REFUSALS + 5):
        refusals.add(NOON, "10.0.0.1:1", f"'{number}'", "no")
    assert len(refusals) == len(list(refusals)) == MAX_REFUSALS == 20
    assert [one.peer for one in refusals][-1] == "'5'"


def test_same_one_again_is_counted_and_moves_to_the_front() -> None:
    refusals = RecentRefusals()
    refusals.add(NOON, "10.0.0.1:1", "'a'", "no")
    refusals.add(NOON, "10.0.0.2:1", "'b'", "no")
    refusals.add(LATER, "10.0.0.1:2", "'a'", "no")
    first, second = refusals
    assert (first.peer, first.times, first.at, first.address) == ("'a'", 2, LATER, "10.0.0.1:2")
    assert (second.peer, second.times) == ("'b'", 1)


def test_peer_that_tries_again_and_again_pushes_nobody_out() -> None:
    refusals = RecentRefusals()
    refusals.add(NOON, "10.0.0.1:1", "'once'", "no")
    for port in range(1000):
        refusals.add(LATER, f"10.0.0.2:{port}", "'often'", "no")
    assert [(one.peer, one.times) for one in refusals] == [("'often'", 1000), ("'once'", 1)]


def test_other_address_claim_or_reason_is_another_one() -> None:
    refusals = RecentRefusals()
    for host, peer, reason in (("1", "'a'", "x"), ("2", "'a'", "x"), ("1", "'b'", "x")):
        refusals.add(NOON, f"10.0.0.{host}:1", peer, reason)
    refusals.add(NOON, "10.0.0.1:1", "'a'", "y")
    assert [one.times for one in refusals] == [1, 1, 1, 1]


def test_claim_is_never_taken_for_the_peer_that_it_names() -> None:
    refusals = RecentRefusals()
    refusals.add(NOON, "10.0.0.1:1", TRAEFIK, "no")
    refusals.add(NOON, "10.0.0.1:1", str(TRAEFIK), "no")
    assert [(one.proven, one.times) for one in refusals] == [(False, 1), (True, 1)]


def test_long_texts_are_cut() -> None:
    refusals = RecentRefusals()
    refusals.add(NOON, f"{'1' * 10_000}:1", "x" * 10_000, "y" * 10_000)
    (one,) = refusals
    assert max(map(len, (one.address, one.peer, one.reason))) <= 300
