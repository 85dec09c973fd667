"""The histogram: each time is counted once, in the bucket of its length."""

from __future__ import annotations

import math

import pytest

from sidecar.core.histogram import BOUNDS, Histogram


def test_bounds_suit_a_first_byte_and_a_long_stream() -> None:
    assert (BOUNDS[0], BOUNDS[-1]) == (0.005, 600)
    assert list(BOUNDS) == sorted(set(BOUNDS))


@pytest.mark.parametrize(
    ("seconds", "not_counted"),
    [
        pytest.param(0.0, 0, id="at once"),
        pytest.param(0.005, 0, id="a bound belongs to its bucket"),
        pytest.param(math.nextafter(0.005, 1), 1, id="a little more does not"),
        pytest.param(600.0, len(BOUNDS) - 1, id="the last bound"),
        pytest.param(601.0, len(BOUNDS), id="longer than all bounds"),
        pytest.param(-0.1, 0, id="a clock that ran backwards"),
    ],
)
def test_time_is_in_its_bucket_and_all_above(seconds: float, not_counted: int) -> None:
    histogram = Histogram()
    histogram.observe(seconds)
    counted = len(BOUNDS) + 1 - not_counted
    assert list(histogram.cumulative()) == [0] * not_counted + [1] * counted


def test_sum_and_count_are_of_all() -> None:
    histogram = Histogram()
    for seconds in (0.25, 0.5, 1000.0, -1.0):
        histogram.observe(seconds)
    assert histogram.count == 4
    assert histogram.total_seconds == 1000.75
    assert list(histogram.cumulative())[-1] == 4
