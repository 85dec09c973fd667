"""A flood of refusals: some lines are written, all are counted, and one cannot hide another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.flood import Flood, host_of

RATE = 20.0
ONE, OTHER = "192.0.2.1", "192.0.2.2"


def written(flood: Flood, lines: int, address: str, now: float, event: str = "peer refused") -> int:
    """How many of so many lines at this moment are written."""
    return sum(flood.admits(event, address, now) for _ in range(lines))


def test_few_refusals_are_all_written() -> None:
    flood = Flood(RATE)
    assert written(flood, 50, ONE, 0.0) == 50
    assert flood.summary(1000.0, 0.0) == {}


def test_without_a_rate_every_line_is_written() -> None:
    flood = Flood(0)
    assert written(flood, 10_000, ONE, 0.0) == 10_000
    assert flood.summary(1000.0, 0.0) == {}


def test_one_address_has_half_of_ten_seconds_at_once() -> None:
    assert written(Flood(RATE), 5000, ONE, 0.0) == 100


def test_all_together_have_ten_seconds_at_once() -> None:
    flood = Flood(RATE)
    assert sum(written(flood, 10, f"192.0.2.{number}", 0.0) for number in range(200)) == 200


def test_one_address_goes_on_at_half_of_the_rate() -> None:
    flood = Flood(RATE)
    written(flood, 5000, ONE, 0.0)
    assert [written(flood, 100, ONE, float(second)) for second in range(1, 6)] == [10] * 5


def test_refusal_of_another_address_is_seen_through_a_flood_that_goes_on() -> None:
    flood = Flood(RATE)
    for tenth in range(600):
        written(flood, 50, ONE, tenth / 10)
        if tenth % 10 == 0:
            assert written(flood, 1, OTHER, tenth / 10) == 1


def test_after_a_pause_there_are_ten_seconds_at_once_again() -> None:
    flood = Flood(RATE)
    written(flood, 5000, ONE, 0.0)
    assert written(flood, 5000, ONE, 60.0) == 100


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        pytest.param("[2001:db8::1]", "[2001:db8::ffff:2]", True, id="a host's own 64 bits"),
        pytest.param("[2001:db8::1]", "[2001:db8:0:1::1]", False, id="another network"),
        pytest.param("[fe80::1%eth0]", "[fe80::2%eth0]", True, id="with a zone"),
        pytest.param("[::ffff:192.0.2.1]", "[::ffff:192.0.2.2]", False, id="IPv4 inside of IPv6"),
        pytest.param("192.0.2.1", "192.0.2.2", False, id="IPv4"),
        pytest.param("192.0.2.1", "192.0.2.1", True, id="another port"),
        pytest.param("what is none", "what is none", True, id="no address"),
    ],
)
def test_all_addresses_of_a_host_are_one_party(first: str, second: str, is_one: bool) -> None:
    assert (host_of(f"{first}:1") == host_of(f"{second}:2")) is is_one


def test_flood_of_one_event_hides_no_other_event() -> None:
    flood = Flood(RATE)
    for number in range(500):
        written(flood, 100, f"192.0.2.{number}", 0.0)
    assert written(flood, 1, ONE, 0.0, "connection failed") == 1
    assert written(flood, 1, "", 0.0, "cannot accept") == 1


def test_what_concerns_no_party_and_goes_on_for_a_day_is_said_every_ten_seconds() -> None:
    flood, hour = Flood(RATE), 3600
    lines = [written(flood, 1, "", tenth / 10, "cannot accept") for tenth in range(10 * hour)]
    assert lines[:100] == [1] * 100
    assert 300 < sum(lines[-10 * hour // 2 :]) * 2 < 420


def test_of_tracebacks_a_tenth_is_written() -> None:
    flood = Flood(RATE)
    came = [flood.admits("connection failed", ONE, 0.0, is_traceback=True) for _ in range(500)]
    assert sum(came) == 10


def test_what_is_left_out_is_told_once_and_by_event() -> None:
    flood = Flood(RATE)
    refused = 300 - written(flood, 300, ONE, 0.0)
    requests = 170 - written(flood, 170, ONE, 0.0, "request")
    expected = {"peer refused": refused, "request": requests}
    assert flood.summary(10.0, 10.0) == expected
    assert flood.summary(1000.0, 10.0) == {}


def test_it_is_told_so_many_seconds_after_the_first_line_left_out() -> None:
    flood = Flood(RATE)
    written(flood, 100, ONE, 0.0)
    written(flood, 5, ONE, 4.0 - 1e-9)  # refilled by now
    written(flood, 500, ONE, 5.0)
    assert flood.summary(14.9, 10.0) == {}
    assert flood.summary(15.0, 10.0) != {}
    written(flood, 500, ONE, 16.0)
    assert flood.summary(25.9, 10.0) == {}
    assert flood.summary(26.0, 10.0) != {}


@given(
    rate=st.floats(0.001, 1000),
    steps=st.lists(
        st.tuples(st.floats(0, 5), st.integers(1, 60), st.sampled_from([ONE, OTHER, ""])),
        max_size=40,
    ),
)
def test_every_line_is_written_or_counted_and_those_written_are_bounded(
    rate: float, steps: list[tuple[float, int, str]]
) -> None:
    flood, now, came, out, told = Flood(rate), 0.0, 0, 0, 0
    for seconds, lines, address in steps:
        now += seconds
        came += lines
        out += written(flood, lines, address, now)
        told += sum(flood.summary(now, 10.0).values())
    told += sum(flood.summary(now, 0.0).values())
    assert out + told == came
    assert out <= max(1, rate * 10) + rate * now + 1
