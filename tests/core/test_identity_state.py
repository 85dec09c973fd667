"""The states of our identity, and when each of them may serve."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sidecar.core.identity_state import Clocks, IdentityState, Standing

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
GRACE = 30.0
DENIED_AT = 1000.0
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("standing", "wall", "monotonic", "state", "serves"),
    [
        pytest.param(Standing(), NOON, 0.0, "starting", False, id="nothing known yet"),
        pytest.param(
            Standing(connected=True), NOON, 0.0, "starting", False, id="agent without an SVID yet"
        ),
        pytest.param(
            Standing(reason="away"), NOON, 0.0, "starting", False, id="agent away from the start"
        ),
        pytest.param(Standing(LATER, True), NOON, 0.0, "ready", True, id="SVID and agent"),
        pytest.param(
            Standing(LATER, True), LATER - TICK, 0.0, "ready", True, id="the last microsecond"
        ),
        pytest.param(
            Standing(LATER, True), LATER, 0.0, "ready", True, id="the end itself (RFC 5280 4.1.2.5)"
        ),
        pytest.param(Standing(LATER, True), LATER + TICK, 0.0, "expired", False, id="after it"),
        pytest.param(Standing(LATER), NOON, 0.0, "agent_lost", True, id="agent away: serve on"),
        pytest.param(
            Standing(LATER), LATER - TICK, 1e9, "agent_lost", True, id="however long it is away"
        ),
        pytest.param(
            Standing(LATER), LATER + TICK, 0.0, "expired", False, id="but not past the end"
        ),
        pytest.param(
            Standing(denied_at=DENIED_AT),
            NOON,
            DENIED_AT,
            "denied",
            False,
            id="denied before any SVID: no grace",
        ),
        pytest.param(
            Standing(LATER, denied_at=DENIED_AT),
            NOON,
            DENIED_AT,
            "denied",
            True,
            id="denied this moment: grace",
        ),
        pytest.param(
            Standing(LATER, denied_at=DENIED_AT),
            NOON,
            DENIED_AT + GRACE - 0.001,
            "denied",
            True,
            id="the last of the grace",
        ),
        pytest.param(
            Standing(LATER, denied_at=DENIED_AT),
            NOON,
            DENIED_AT + GRACE,
            "denied",
            False,
            id="the end of the grace",
        ),
        pytest.param(
            Standing(LATER, denied_at=DENIED_AT),
            NOON,
            DENIED_AT + 1e6,
            "denied",
            False,
            id="long after the grace",
        ),
        pytest.param(
            Standing(LATER, denied_at=DENIED_AT),
            LATER + TICK,
            DENIED_AT,
            "expired",
            False,
            id="expired within the grace",
        ),
        pytest.param(
            Standing(LATER, True, denied_at=DENIED_AT),
            NOON,
            DENIED_AT + GRACE,
            "denied",
            False,
            id="a stream does not undo a denial",
        ),
        pytest.param(
            Standing(LATER, denied_at=0.0),
            NOON,
            GRACE,
            "denied",
            False,
            id="denied when the monotonic clock stood at 0",
        ),
    ],
)
def test_state_and_service(
    standing: Standing, wall: datetime, monotonic: float, state: str, serves: bool
) -> None:
    clocks = Clocks(wall, monotonic)
    assert standing.state(clocks) is IdentityState(state)
    assert standing.may_serve(clocks, GRACE) is serves


def test_grace_of_zero_stops_at_once() -> None:
    standing = Standing(LATER, denied_at=DENIED_AT)
    assert not standing.may_serve(Clocks(NOON, DENIED_AT), 0)


def test_wall_clock_set_back_serves_again_only_within_validity() -> None:
    standing = Standing(LATER, True)
    assert not standing.may_serve(Clocks(LATER + TICK, 1.0), GRACE)
    assert standing.may_serve(Clocks(NOON, 2.0), GRACE)


def test_every_state_is_in_the_table_above() -> None:
    assert {str(state) for state in IdentityState} == {
        "starting",
        "ready",
        "agent_lost",
        "denied",
        "expired",
    }
