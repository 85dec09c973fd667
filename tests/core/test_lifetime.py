"""How long a connection may go on, by its endings and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.lifetime import NEVER, Ending, Verdict, judge

GOES_ON = Verdict("", cut_now=False, look_again_in=NEVER)


def ending(at: float, grace: float, reason: str = "why") -> Ending:
    return Ending(reason, at, grace)


@pytest.mark.parametrize(
    ("endings", "verdict"),
    [
        pytest.param([], GOES_ON, id="nothing ends it"),
        pytest.param([ending(NEVER, 0)], GOES_ON, id="an end that never comes"),
        pytest.param([ending(60, 5)], Verdict("", False, 60), id="looked at when it comes"),
        pytest.param([ending(0.25, 5)], Verdict("", False, 0.25), id="a moment too early"),
        pytest.param([ending(0, 5)], Verdict("why", False, 5), id="it has come"),
        pytest.param([ending(-2, 5)], Verdict("why", False, 3), id="the grace counts from then"),
        pytest.param([ending(-4.75, 5)], Verdict("why", False, 0.25), id="the end of the grace"),
        pytest.param([ending(-5, 5)], Verdict("why", True, NEVER), id="the grace is over"),
        pytest.param([ending(-1e9, 5)], Verdict("why", True, NEVER), id="it has long been over"),
        pytest.param([ending(0, 0)], Verdict("why", True, NEVER), id="no grace"),
        pytest.param([ending(-1, 0)], Verdict("why", True, NEVER), id="no grace, and late"),
        pytest.param([ending(1, 0)], Verdict("", False, 1), id="no grace, but not yet"),
        pytest.param([ending(-7, NEVER)], Verdict("why", False, NEVER), id="grace without end"),
        pytest.param([ending(-NEVER, 5)], Verdict("why", True, NEVER), id="since ever"),
    ],
)
def test_verdict_on_one_ending(endings: list[Ending], verdict: Verdict) -> None:
    assert judge(endings) == verdict


@pytest.mark.parametrize(
    ("endings", "verdict"),
    [
        pytest.param(
            [ending(-1, 9, "late"), ending(-2, 9, "first")],
            Verdict("first", False, 7),
            id="the one that held first is told",
        ),
        pytest.param(
            [ending(0, 9, "first"), ending(0, 9, "second")],
            Verdict("first", False, 9),
            id="of two at a time the one that was named first",
        ),
        pytest.param(
            [ending(-1, 300, "slow"), ending(0, 0, "sharp")],
            Verdict("sharp", True, 299),
            id="the one that cuts is told, and not an earlier one with grace left",
        ),
        pytest.param(
            [ending(-300, 300, "slow"), ending(0, 0, "sharp")],
            Verdict("slow", True, NEVER),
            id="of two that cut the one that held first",
        ),
        pytest.param(
            [ending(-1, 300, "holds"), ending(20, 0, "comes")],
            Verdict("holds", False, 20),
            id="one that comes within the grace of another is waited for",
        ),
        pytest.param(
            [ending(-1, 5, "holds"), ending(20, 0, "comes")],
            Verdict("holds", False, 4),
            id="a grace that ends before another one comes is waited for",
        ),
        pytest.param(
            [ending(30, 0, "later"), ending(20, 0, "sooner")],
            Verdict("", False, 20),
            id="of two that come the sooner one is waited for",
        ),
        pytest.param(
            [ending(-9, NEVER, "old"), ending(5, 1, "comes")],
            Verdict("old", False, 5),
            id="an old reason does not hide what comes",
        ),
    ],
)
def test_verdict_on_several_endings(endings: list[Ending], verdict: Verdict) -> None:
    assert judge(endings) == verdict


def test_any_iterable_of_endings_will_do() -> None:
    assert judge(ending(at, 9) for at in (-1.0, 4.0)) == Verdict("why", False, 4)


# Quarters of a second: sums of them are exact.
MOMENTS = st.integers(-4000, 4000).map(lambda quarters: quarters / 4)
GRACES = st.integers(0, 4000).map(lambda quarters: quarters / 4)
ENDINGS = st.lists(
    st.builds(
        Ending,
        reason=st.sampled_from("abc"),
        at=MOMENTS | st.just(NEVER),
        grace=GRACES | st.just(NEVER),
    ),
    max_size=5,
)


def later(endings: list[Ending], seconds: float) -> list[Ending]:
    """The same endings, so many seconds on."""
    return [replace(one, at=one.at - seconds) for one in endings]


def is_over(one: Ending) -> bool:
    return one.at <= 0 and -one.at >= one.grace


@given(ENDINGS)
def test_no_request_may_begin_as_soon_as_one_ending_has_come(endings: list[Ending]) -> None:
    reason = judge(endings).reason
    assert bool(reason) == any(one.at <= 0 for one in endings)
    assert not reason or reason in {one.reason for one in endings if one.at <= 0}


@given(ENDINGS)
def test_it_is_cut_as_soon_as_one_grace_is_over(endings: list[Ending]) -> None:
    verdict = judge(endings)
    assert verdict.cut_now == any(map(is_over, endings))
    if verdict.cut_now:
        assert verdict.reason in {one.reason for one in endings if is_over(one)}


@given(ENDINGS, st.floats(0, 1, exclude_max=True))
def test_until_it_is_looked_at_again_time_alone_changes_nothing(
    endings: list[Ending], share: float
) -> None:
    verdict = judge(endings)
    wait = min(verdict.look_again_in, 1e6)
    on_the_way = judge(later(endings, int(wait * share * 4) / 4))
    assert (on_the_way.reason, on_the_way.cut_now) == (verdict.reason, verdict.cut_now)


@given(ENDINGS)
def test_it_is_looked_at_again_in_the_future(endings: list[Ending]) -> None:
    """A moment that has passed would be looked at without a pause, for ever."""
    assert judge(endings).look_again_in > 0


@given(ENDINGS)
def test_looking_again_whenever_it_is_due_comes_to_an_end(endings: list[Ending]) -> None:
    looks, verdict = 0, judge(endings)
    while verdict.look_again_in < NEVER:
        endings = later(endings, verdict.look_again_in)
        verdict, looks = judge(endings), looks + 1
    assert looks <= 2 * len(endings)
    assert verdict.cut_now == any(one.at < NEVER and one.grace < NEVER for one in endings)


@given(ENDINGS)
def test_who_is_cut_stays_cut(endings: list[Ending]) -> None:
    if judge(endings).cut_now:
        assert judge(later(endings, 0.25)).cut_now


@given(ENDINGS, st.randoms())
def test_the_order_of_the_endings_decides_nothing_but_ties(
    endings: list[Ending], random: Random
) -> None:
    shuffled = list(endings)
    random.shuffle(shuffled)
    here, there = judge(endings), judge(shuffled)
    assert (here.cut_now, here.look_again_in) == (there.cut_now, there.look_again_in)
    if len({one.at for one in endings}) == len(endings):
        assert here.reason == there.reason
