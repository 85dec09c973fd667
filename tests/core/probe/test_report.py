"""The values of a probe."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sidecar.core.probe.report import Fault, Hop, Phase, ProbeReport, ProbeRequest, old_share
from sidecar.core.probe.target import ProbeTarget, ProbeTargetError

TARGET = ProbeTarget.parse("https://host:6701/")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_report_without_a_fault_is_good() -> None:
    assert ProbeReport(TARGET).ok
    assert not ProbeReport(TARGET, fault=Fault(Hop.NAME, "not_resolved", "no")).ok


def test_time_of_all_is_that_of_its_phases() -> None:
    phases = (Phase("a", 1.5, True), Phase("peer", None, True), Phase("b", 0.25, False))
    assert ProbeReport(TARGET, phases=phases).seconds == 1.75


@pytest.mark.parametrize("method", ["GET", "POST", "PROPFIND"])
def test_method_is_taken(method: str) -> None:
    assert ProbeRequest(TARGET, method=method).method == method


@pytest.mark.parametrize("method", ["", "get", "G T", "GET\r\nX: y", "GET\n"])
def test_what_is_no_method_is_refused(method: str) -> None:
    with pytest.raises(ProbeTargetError):
        ProbeRequest(TARGET, method=method)


@pytest.mark.parametrize(
    ("minutes", "share"), [(0, 0.0), (30, 0.5), (60, 1.0), (90, 1.5), (-30, -0.5)]
)
def test_share_of_a_life_that_is_over(minutes: int, share: float) -> None:
    now = NOON + timedelta(minutes=minutes)
    assert old_share(NOON, NOON + timedelta(hours=1), now) == share


def test_life_of_no_length_is_over() -> None:
    assert old_share(NOON, NOON, NOON) > 1
