"""A probe's lines: aligned, each on one line, nothing told by colour alone; and its JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from sidecar.core.policy import PeerPattern
from sidecar.core.probe.report import (
    Answer,
    Fault,
    Handshake,
    Hop,
    OwnIdentity,
    PeerCertificate,
    Phase,
    ProbeReport,
    ProbeRequest,
)
from sidecar.core.probe.target import ProbeTarget
from sidecar.core.spiffe_id import TrustDomain
from sidecar.operations.probe import screen, words

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SOON = NOON + timedelta(minutes=17)
EVIL = "\x1b[2J\r\nforged: line\u202e"
TARGET = ProbeTarget.parse("https://host:6701/a?k=v")
OWN = OwnIdentity("spiffe://e.org/a", "01", NOON, NOON + HOUR, "unix:/a", ("e.org",))
PEER = PeerCertificate("spiffe://e.org/b", "02", NOON, NOON + HOUR, (), "'SPIFFE'")
ANSWER = Answer(200, "OK", "id", True, "text/plain", 15, 1, 0.0, 0.0, True)
REPORT = ProbeReport(
    TARGET,
    phases=(Phase("identity", 0.02, True), Phase("answer", 1.0, True, ("all",))),
    identity=OWN,
    handshake=Handshake("TLSv1.3", "cipher", "group", "", asked=True),
    peer=PEER,
    answer=ANSWER,
)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.0 ms"),
        (0.00123, "1.2 ms"),
        (0.9994, "999.4 ms"),
        (0.9996, "1.00 s"),
        (2.345, "2.35 s"),
        (59.994, "59.99 s"),
        (61.5, "62 s"),
        (3600.0, "3600 s"),
    ],
)
def test_times_are_in_the_unit_that_they_are_read_in(seconds: float, shown: str) -> None:
    assert words.duration(seconds) == shown


def test_lines_are_aligned() -> None:
    shown = [
        line.text
        for phase in (
            Phase("identity", 0.0123, True, ("one", "two")),
            Phase("first byte", 12.5, True, ("one",)),
            Phase("peer", None, True, ("one",)),
            Phase("connect", 3600.0, False, ("one", "two")),
            Phase("connect", 0.0, False),
        )
        for line in screen.phase_lines(phase)
    ]
    columns = {
        line.index(word) for line in shown for word in ("one", "two", "failed") if word in line
    }
    assert len(columns) == 1
    assert [line.startswith("x ") for line in shown] == [False] * 4 + [True, False, True]


def test_text_from_outside_stays_in_its_line() -> None:
    phase = Phase("name", 0.0, True, (EVIL, EVIL))
    fault = Fault(Hop.PEER, "no_svid", EVIL, EVIL)
    report = replace(REPORT, fault=fault, notes=(EVIL,))
    lines = [
        *screen.phase_lines(phase),
        *screen.closing(report),
        screen.one_line(1, report),
        screen.opening(ProbeRequest(TARGET)),
    ]
    assert all(line.text.isprintable() for line in lines)


@pytest.mark.parametrize("hop", list(Hop))
def test_each_hop_has_words_and_its_remedy_a_line(hop: Hop) -> None:
    report = replace(REPORT, fault=Fault(hop, "code", "the message", "the remedy"))
    *_, verdict, hint = [line.text for line in screen.closing(report)]
    assert verdict.startswith("FAILED at ")
    assert verdict.endswith("the message")
    assert hint == "hint: the remedy"


def test_verdict_says_what_and_from_whom() -> None:
    *_, last = screen.closing(REPORT)
    assert last.text == "ok: 200 from spiffe://e.org/b in 1.02 s"
    *_, last = screen.closing(replace(REPORT, answer=None))
    assert last.text == "ok: handshake with spiffe://e.org/b in 1.02 s"


def test_query_is_not_shown() -> None:
    assert screen.opening(ProbeRequest(TARGET)).text == "GET https://host:6701/a?..."
    assert screen.as_json(REPORT)["url"] == "https://host:6701/a?..."


def test_sum_of_many_is_of_those_that_went_well() -> None:
    times = [0.003, 0.001, 0.002]
    good = [replace(REPORT, phases=(Phase("answer", seconds, True),)) for seconds in times]
    bad = replace(REPORT, fault=Fault(Hop.CONNECT, "refused", "no"))
    _, sums, verdict = [line.text for line in screen.many([*good, bad])]
    assert sums == "fastest 1.0 ms, middle 2.0 ms, slowest 3.0 ms"
    assert verdict == "3 of 4 went well"
    assert [line.text for line in screen.many([bad])] == ["", "0 of 1 went well"]


def test_time_of_one_of_many_is_without_the_agents() -> None:
    assert "1.00 s" in screen.one_line(1, REPORT).text


def test_json_is_all_values_and_no_lines() -> None:
    told = json.loads(msgspec.json.encode(screen.as_json(REPORT)))
    assert told["ok"] is True
    assert told["phases"][1] == {"name": "answer", "seconds": 1.0, "ok": True}
    assert told["identity"]["not_after"] == "2026-11-21T13:00:00Z"
    assert told["answer"]["status"] == 200


# Words.


@pytest.mark.parametrize(
    ("now", "shown"),
    [
        pytest.param(SOON, "43 min left of 1 h", id="valid"),
        pytest.param(NOON + 2 * HOUR, "EXPIRED 1 h ago", id="expired"),
        pytest.param(NOON - HOUR, "NOT YET VALID, for 1 h", id="too early"),
    ],
)
def test_life_of_an_svid(now: datetime, shown: str) -> None:
    said = words.said_of_identity(OWN, now)
    assert said[0] == OWN.spiffe_id
    assert said[1].startswith(shown)
    assert any(shown in line for line in words.said_of_presented(PEER, now))


def test_what_was_expected_is_said() -> None:
    own = TrustDomain.parse("e.org")
    patterns = tuple(map(PeerPattern.parse, ("spiffe://e.org/x", "spiffe://e.org/y/*")))
    said = words.said_of_peer(PEER, patterns, own, SOON)
    assert said[1] == "expected: spiffe://e.org/x or spiffe://e.org/y/*"
    assert "any ID of e.org" in words.said_of_peer(PEER, (), own, SOON)[1]


def test_pace_of_an_answer_is_said() -> None:
    assert words.said_of_answer(ANSWER)[0] == "15 B at once, text/plain"
    slow = replace(ANSWER, pieces=7, spread_seconds=2.0, longest_gap_seconds=0.5)
    assert "7 pieces over 2.00 s, longest gap 500.0 ms" in words.said_of_answer(slow)[0]


def test_request_id_of_somebody_else_is_said_to_be_one() -> None:
    assert words.said_of_answer(ANSWER)[1] == "request ID id"
    assert "not the one" in words.said_of_answer(replace(ANSWER, is_echoed=False))[1]
    assert len(words.said_of_answer(replace(ANSWER, request_id=""))) == 1
