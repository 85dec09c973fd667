"""A daemon in its sandbox writes its log to a file, through rotations and without the file."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.log_lines import Line
from tests.redaction import assert_redacted
from tests.scenarios.conftest import Launch

FILE = "logs/sidecar.log"
HANGUP = "configuration loaded"


@pytest.fixture(name="log")
def _log(folder: Path) -> Path:
    (folder / "logs").mkdir()
    return folder / FILE


def _lines(path: Path) -> list[Line]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _wait_for(path: Path, event: str, count: int = 1) -> None:
    deadline = time.monotonic() + 20
    while sum(line["event"] == event for line in _lines(path)) < count:
        assert time.monotonic() < deadline, f"no {event!r} in {_lines(path)}"
        time.sleep(0.01)


def _started(launch: Launch, log: Path) -> Daemon:
    daemon = launch(more=f'file = "{FILE}"')
    _wait_for(log, "ready")
    return daemon


def test_log_is_in_the_file_and_standard_error_is_silent(launch: Launch, log: Path) -> None:
    daemon = _started(launch, log)
    assert daemon.stop() == 0
    assert daemon.raw == []
    assert _lines(log)[0]["event"] == "confined"
    assert _lines(log)[-1]["event"] == "stopped"
    assert_redacted(log.read_text().splitlines())
    assert log.stat().st_mode & 0o137 == 0


def test_rotated_log_is_begun_anew_without_a_signal(launch: Launch, log: Path) -> None:
    daemon = _started(launch, log)
    rotated = log.rename(f"{log}.0")
    before = rotated.read_text()
    daemon.process.send_signal(signal.SIGHUP)
    _wait_for(log, HANGUP)
    assert daemon.stop() == 0
    assert rotated.read_text() == before
    assert daemon.raw == []


def test_daemon_whose_log_folder_vanishes_serves_on_and_says_so(launch: Launch, log: Path) -> None:
    daemon = _started(launch, log)
    shutil.rmtree(log.parent)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("log file not written")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(HANGUP)
    assert daemon.stop() == 0
    assert len(daemon.lines("log file not written")) == 1


def test_daemon_without_a_log_folder_starts_and_says_so(launch: Launch) -> None:
    daemon = launch(more=f'file = "{FILE}"')
    told = daemon.wait_for("log file not written")
    assert told["file"].endswith(FILE)
    assert daemon.address
    assert daemon.stop() == 0
