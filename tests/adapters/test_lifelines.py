"""A connection's lifeline: watched as long as it is entered, told once, cut without a word."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import trio

from sidecar.adapters.lifelines import Lifeline, Lifelines
from sidecar.core.spiffe_id import SpiffeId

RUNNING = ("GET", "/v1/models")


@dataclass(eq=False)
class FakePeer:
    """What a lifeline knows of its peer; nothing here looks at it."""

    peer = SpiffeId.parse("spiffe://example.org/workload/traefik")
    identity = None
    not_before = not_after = datetime(2030, 1, 1, tzinfo=UTC)
    fingerprint = ""

    def prove_again(self, identity: object, now: datetime) -> None:
        raise NotImplementedError


class Told:
    """Counts how often the mode was told."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


@pytest.fixture
def lifelines() -> Lifelines:
    return Lifelines()


def stream(lifelines: Lifelines, told: Told | None = None) -> Lifeline:
    return lifelines.watch(FakePeer(), told or Told(), is_one_answer=True)


def http(lifelines: Lifelines, told: Told | None = None) -> Lifeline:
    return lifelines.watch(FakePeer(), told or Told(), is_one_answer=False)


async def test_it_is_watched_as_long_as_it_is_entered(lifelines: Lifelines) -> None:
    with stream(lifelines) as first, http(lifelines) as second:
        assert lifelines.all == {first, second}
    assert lifelines.all == set()


async def test_it_leaves_whatever_happens(lifelines: Lifelines) -> None:
    with pytest.raises(KeyError), stream(lifelines):
        raise KeyError
    assert lifelines.all == set()
    with trio.CancelScope() as scope:
        scope.cancel()
        with stream(lifelines) as lifeline:
            await trio.sleep_forever()
    assert lifelines.all == set()
    assert (lifeline.was_cut, lifeline.ended) == (False, ""), "somebody else cancelled it"


async def test_new_ones_are_taken_once_and_only_while_they_are_there(lifelines: Lifelines) -> None:
    with stream(lifelines) as first:
        with stream(lifelines):
            pass
        assert lifelines.news.is_set()
        assert lifelines.take_new() == [first]
        assert not lifelines.news.is_set()
        assert lifelines.take_new() == []
        with stream(lifelines) as second:
            assert lifelines.news.is_set()
            assert lifelines.take_new() == [second]


async def test_mode_is_told_of_the_end_once_and_the_first_reason_stays(
    lifelines: Lifelines,
) -> None:
    told = Told()
    with http(lifelines, told) as lifeline:
        for reason in ("first", "second"):
            lifeline.end(reason)
        assert (lifeline.ended, told.times) == ("first", 1)
        await trio.lowlevel.checkpoint()  # it goes on


async def test_cut_stops_a_stream_wherever_it_is(lifelines: Lifelines) -> None:
    told, reached = Told(), []
    with stream(lifelines, told) as lifeline:
        lifeline.end("first")
        lifeline.cut("grace over")
        reached.append("up to here")
        await trio.sleep_forever()
    assert reached == ["up to here"]
    assert (lifeline.ended, lifeline.was_cut, told.times) == ("grace over", True, 1)


async def test_cut_alone_tells_the_mode_too(lifelines: Lifelines) -> None:
    told = Told()
    with stream(lifelines, told) as lifeline:
        lifeline.cut("no grace")
        await trio.sleep_forever()
    assert (lifeline.ended, told.times) == ("no grace", 1)


async def test_cut_stops_a_request_that_runs(lifelines: Lifelines) -> None:
    with http(lifelines) as lifeline:
        lifeline.request = RUNNING
        lifeline.cut("no grace")
        await trio.sleep_forever()
    assert lifeline.was_cut


async def test_between_two_requests_there_is_nothing_to_cut(lifelines: Lifelines) -> None:
    told = Told()
    with http(lifelines, told) as lifeline:
        lifeline.cut("no grace")
        await trio.lowlevel.checkpoint()
    assert (lifeline.ended, lifeline.was_cut, told.times) == ("no grace", False, 1)


async def test_cut_ends_one_connection_only(lifelines: Lifelines) -> None:
    with stream(lifelines) as outer:
        with stream(lifelines) as inner:
            inner.cut("this one")
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
    assert (inner.was_cut, outer.was_cut) == (True, False)


async def test_fault_of_a_connection_that_is_cut_is_not_hidden(lifelines: Lifelines) -> None:
    async def fail_when_cut() -> None:
        with stream(lifelines) as lifeline:
            lifeline.cut("no grace")
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError

    with pytest.raises(KeyError):
        await fail_when_cut()
