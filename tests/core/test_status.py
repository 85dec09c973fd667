"""The status as JSON: there and back, and fit for a terminal and for other versions."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest

from sidecar.core.readiness import report, verdict
from sidecar.core.status import RefusalStatus, printable, read_report, to_json
from tests.statuses import AGENT, FILES, HOOK, NOW, PEER, REFUSAL, but, helping, serving

EVERYTHING = serving(
    files=FILES, hooks=(HOOK,), peers=(PEER,), refusals=(REFUSAL,), jwt_svids=helping().jwt_svids
)


@pytest.mark.parametrize("status", [EVERYTHING, helping(), serving(identity=None)])
def test_report_comes_back_as_it_was(status: object) -> None:
    made = report(status)  # type: ignore[arg-type]
    assert read_report(to_json(made)) == made


def test_json_begins_with_the_verdict() -> None:
    assert to_json(report(EVERYTHING)).startswith(b'{"ready":true,')
    assert json.loads(to_json(verdict(serving(draining=True)))) == {
        "ready": False,
        "reasons": [{"name": "draining", "text": "stopping: no new connections"}],
        "warnings": [],
    }


def test_times_have_a_zone() -> None:
    assert json.loads(to_json(report(EVERYTHING)))["status"]["at"] == "2026-03-01T13:20:11Z"


def test_what_a_newer_daemon_says_besides_is_left_out() -> None:
    data = json.loads(to_json(report(EVERYTHING)))
    data["weather"] = "fine"
    data["status"]["agent"]["mood"] = ["good"]
    data["status"]["agent"]["state"] = "a state of the future"
    read = read_report(json.dumps(data).encode())
    assert read.status.agent == but(AGENT, state="a state of the future")


def test_what_an_older_daemon_does_not_say_has_a_default() -> None:
    needed = {"at", "version", "mode", "started_at", "agent"}
    data = json.loads(to_json(report(EVERYTHING)))
    data["status"] = {key: data["status"][key] for key in needed}
    assert read_report(json.dumps(data).encode()).status.peers == ()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>", id="no JSON"),
        pytest.param(b"{}", id="no status"),
        pytest.param(b'{"ready": "yes", "status": {}}', id="other types"),
        pytest.param(b"\xff", id="no UTF-8"),
        pytest.param(b"[" * 100_000, id="too deep"),
    ],
)
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\A.+\Z"):
        read_report(data)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("spiffe://a/b", "spiffe://a/b", id="as it is"),
        pytest.param("größe ✓", "größe ✓", id="other letters"),
        pytest.param("a\nb\tc", r"a\nb\tc", id="new line"),
        pytest.param("\x1b[31mred", r"\x1b[31mred", id="escape"),
        pytest.param("a\x9b31m", r"a\x9b31m", id="escape in one byte"),
        pytest.param("a\x00b\x7f", r"a\x00b\x7f", id="NUL and DEL"),
        pytest.param("\u202eevil", r"\u202eevil", id="right to left"),
        pytest.param("\udcff", r"\udcff", id="half a pair"),
        pytest.param("\U000e0041", r"\U000e0041", id="invisible letter"),
        pytest.param("it's", "it's", id="quotes"),
        pytest.param("it's\n'\"", "it's\\n'\"", id="quotes and a new line"),
    ],
)
def test_printable_text_has_nothing_that_a_terminal_acts_on(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_no_text_of_the_json_needs_care() -> None:
    evil = RefusalStatus(
        at=datetime(2026, 1, 1, tzinfo=UTC), address="a", peer="\udcff\x1b", reason="\x9b\n\u202e"
    )
    data = to_json(report(serving(refusals=(evil,), identity=None)))
    assert data.decode("utf-8").isprintable()
    (back,) = read_report(data).status.refusals
    assert (back.peer, back.reason) == (r"\udcff\x1b", r"\x9b\n\u202e")


def test_what_is_no_value_of_a_status_is_no_text_either() -> None:
    with pytest.raises(NotImplementedError):
        to_json(report(serving(version=object())))


def test_parts_are_values() -> None:
    with pytest.raises(AttributeError):
        serving().mode = "stream"  # type: ignore[misc]
    assert serving() == serving() != serving(at=NOW.replace(year=2027))
    assert msgspec.structs.asdict(serving())["mode"] == "http"
