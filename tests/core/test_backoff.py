"""Backoff: doubled from the first ceiling to the cap, and drawn from zero up."""

from __future__ import annotations

import pytest

from sidecar.core.backoff import Backoff

AGAIN = Backoff(first=0.1, cap=5.0)


@pytest.mark.parametrize(
    ("attempt", "ceiling"),
    [
        pytest.param(0, 0.1, id="first"),
        pytest.param(1, 0.2, id="doubled"),
        pytest.param(5, 3.2, id="last below the cap"),
        pytest.param(6, 5.0, id="capped"),
        pytest.param(7, 5.0, id="stays capped"),
        pytest.param(10_000_000, 5.0, id="after a year without an agent"),
    ],
)
def test_ceiling_doubles_up_to_the_cap(attempt: int, ceiling: float) -> None:
    assert AGAIN.ceiling(attempt) == pytest.approx(ceiling)


@pytest.mark.parametrize(
    ("draw", "delay"),
    [
        pytest.param(0.0, 0.0, id="nothing"),
        pytest.param(0.5, 0.2, id="half"),
        pytest.param(0.75, 0.3, id="three quarters"),
    ],
)
def test_delay_is_the_drawn_share_of_the_ceiling(draw: float, delay: float) -> None:
    assert AGAIN.delay(2, draw) == pytest.approx(delay)


def test_delay_stays_below_the_cap_for_every_attempt() -> None:
    assert all(0 <= AGAIN.delay(attempt, 0.999) < 5.0 for attempt in range(2000))


def test_first_above_the_cap_is_capped() -> None:
    assert Backoff(first=9.0, cap=5.0).ceiling(0) == 5.0
