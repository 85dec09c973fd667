"""What is no fault of a probe, and yet worth a look."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sidecar.core.probe.notes import all_notes
from sidecar.core.probe.report import (
    Answer,
    Handshake,
    OwnIdentity,
    PeerCertificate,
    Phase,
    ProbeReport,
)
from sidecar.core.probe.target import ProbeTarget

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
OWN = OwnIdentity("spiffe://e.org/a", "01", NOON, NOON + HOUR, "unix:/a", ("e.org",))
PEER = PeerCertificate("spiffe://e.org/b", "02", NOON, NOON + HOUR, (), "'SPIFFE'")
SHAKEN = Handshake("TLSv1.3", "cipher", "group", "", asked=True)
ANSWER = Answer(200, "OK", "id", True, "text/event-stream", pieces=9, spread_seconds=3.0)
REPORT = ProbeReport(
    ProbeTarget.parse("https://h:1/"),
    phases=(Phase("first byte", 4.0, True), Phase("answer", 3.0, True)),
    identity=OWN,
    handshake=SHAKEN,
    peer=PEER,
    answer=ANSWER,
)


def notes(*, minutes: float = 10, **changes: object) -> str:
    report = replace(REPORT, **changes)  # type: ignore[arg-type]
    return "\n".join(all_notes(report, NOON + timedelta(minutes=minutes)))


def test_nothing_is_noted_of_what_is_as_it_should_be() -> None:
    assert notes() == ""
    assert notes(identity=None, handshake=None, peer=None, answer=None, phases=()) == ""


def test_svid_that_should_have_been_renewed_is_noted() -> None:
    assert notes(minutes=44) == ""
    both = notes(minutes=50)
    assert "our own SVID" in both
    assert "the peer's SVID" in both
    assert "83%" in both


def test_certificate_that_was_refused_is_not_noted_besides() -> None:
    assert "the peer's" not in notes(minutes=50, handshake=None)


def test_peer_that_wants_no_certificate_is_noted() -> None:
    assert "anybody" in notes(handshake=replace(SHAKEN, asked=False))


def test_redirect_is_noted() -> None:
    assert "302" in notes(answer=replace(ANSWER, status=302))


@pytest.mark.parametrize(
    ("answer", "waited", "is_noted"),
    [
        pytest.param(replace(ANSWER, spread_seconds=0.01), 4.0, True, id="all at once, late"),
        pytest.param(replace(ANSWER, spread_seconds=0.01), 1.0, False, id="all at once, soon"),
        pytest.param(ANSWER, 4.0, False, id="as it came"),
        pytest.param(
            replace(ANSWER, spread_seconds=0.0, content_type="application/json"),
            4.0,
            False,
            id="no stream",
        ),
    ],
)
def test_stream_that_was_held_back_is_noted(answer: Answer, waited: float, is_noted: bool) -> None:
    found = notes(answer=answer, phases=(Phase("first byte", waited, True),))
    assert ("buffering" in found) is is_noted
