"""The log gives way: what cannot be written is counted, and nobody waits for a reader."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator

import pytest
import structlog

from sidecar.logs import FloodLimit, LogWriter, configure_logs
from tests.log_lines import Line, left_out


@pytest.fixture(autouse=True)
def _restore_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def _log_into(writer: LogWriter) -> None:
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(file=writer),  # type: ignore[arg-type]
    )


def test_lines_come_out_in_order() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    for number in range(100):
        writer.write(f"{number}\n")
    writer.close(10)
    os.close(writing)
    with open(reading) as stream:
        assert [int(line) for line in stream] == list(range(100))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_raises_nothing() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(descriptor)
    writer.write("lost\n")
    writer.close(10)
    os.close(descriptor)


def test_reader_that_is_gone_raises_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LogWriter(writing)
    for _ in range(10):
        writer.write("lost\n")
    writer.close(10)
    os.close(writing)


def test_reader_that_stalls_costs_lines_and_the_loss_is_told() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    _log_into(writer)
    line = "x" * 1000 + "\n"
    for _ in range(20_000):  # twenty MB: more than pipe and queue take
        writer.write(line)
    text: list[str] = []

    def read() -> None:
        with open(reading) as stream:
            text.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    writer.close(30)
    os.close(writing)
    reader.join(30)
    lost = [one for one in text if "log lines lost" in one]
    assert lost, "nobody was told"
    assert len(text) < 20_000


def test_close_does_not_wait_for_a_reader_that_stalls() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    for _ in range(1000):
        writer.write("x" * 1000 + "\n")
    closing = threading.Thread(target=writer.close, args=(0.1,), daemon=True)
    closing.start()
    closing.join(20)
    held_up = closing.is_alive()
    os.close(reading)  # lets go whoever waits for room in the pipe
    assert not held_up, "close waits for the reader"


# Refusals: some lines a second, the rest counted.


class Spout:
    """A pipe's writing end, and all that came out of the other one."""

    def __init__(self) -> None:
        reading, self.descriptor = os.pipe()
        self._text: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(reading,))
        self._thread.start()

    def _read(self, reading: int) -> None:
        with open(reading) as stream:
            self._text.extend(stream)

    def lines(self) -> list[Line]:
        """End it and give the lines."""
        os.close(self.descriptor)
        self._thread.join(30)
        return [json.loads(line) for line in self._text]


def _refuse(count: int, event: str = "peer refused", **fields: object) -> None:
    log = structlog.get_logger()
    for _ in range(count):
        log.warning(event, address="192.0.2.1:40000", **fields)


def _logged(limit: FloodLimit, say: Callable[[], None]) -> list[Line]:
    """What is written of what `say` logs, to the end of the log."""
    spout = Spout()
    writer = LogWriter(spout.descriptor, limit.tell)
    structlog.configure(
        processors=[limit, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(file=writer),  # type: ignore[arg-type]
    )
    say()
    writer.close(30)
    return spout.lines()


def _counted(lines: list[Line], event: str) -> tuple[int, int]:
    """How many lines of an event are written, and how many are told to be left out."""
    return sum(one["event"] == event for one in lines), left_out(lines, event)


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        pytest.param("peer refused", {}, id="peer"),
        pytest.param("request", {"decision": "refused"}, id="request"),
    ],
)
def test_refusals_too_many_are_left_out_and_counted(event: str, fields: dict[str, str]) -> None:
    lines = _logged(FloodLimit(1), lambda: _refuse(1000, event, **fields))
    written, left_out = _counted(lines, event)
    assert 0 < written < 100
    assert written + left_out == 1000


def _said_at(level: str, event: str, count: int, **fields: object) -> None:
    for _ in range(count):
        getattr(structlog.get_logger(), level)(event, **fields)


ADDRESS = "192.0.2.1:40000"


@pytest.mark.parametrize(
    ("level", "event", "fields"),
    [
        pytest.param("error", "cannot accept", {"reason": "x"}, id="a listener's"),
        pytest.param("warning", "backend unreachable", {"address": ADDRESS}, id="a backend's"),
        pytest.param(
            "warning",
            "request",
            {"address": ADDRESS, "decision": "allowed", "status": 502},
            id="a request that failed",
        ),
        pytest.param("error", "connection failed", {"exc_info": True}, id="a traceback"),
        pytest.param("debug", "probed", {"address": ADDRESS}, id="for debugging"),
        pytest.param("warning", "of which no place knows", {"x": 1}, id="whatever comes next"),
    ],
)
def test_lines_too_many_are_left_out_whatever_they_say(
    level: str, event: str, fields: dict[str, object]
) -> None:
    lines = _logged(FloodLimit(2), lambda: _said_at(level, event, 1000, **fields))
    written, left_out = _counted(lines, event)
    assert 0 < written < 100
    assert written + left_out == 1000


def test_what_was_served_is_never_left_out() -> None:
    def say() -> None:
        _refuse(1000)
        _said_at("info", "request", 1000, decision="allowed", address=ADDRESS)

    assert _counted(_logged(FloodLimit(1), say), "request") == (1000, 0)


def test_what_was_left_out_of_several_events_is_one_line() -> None:
    def say() -> None:
        _refuse(1000)
        _refuse(500, "backend unreachable")

    lines = _logged(FloodLimit(1), say)
    summary = [one for one in lines if one["event"] == "lines left out"]
    assert len(summary) == 1
    assert summary[0]["of"] == "backend unreachable: 495, peer refused: 995"
    assert summary[0]["lines"] == 1490


def test_proven_peer_is_one_party_from_wherever_it_connects() -> None:
    def say() -> None:
        for number in range(200):
            log = structlog.get_logger()
            log.warning("request", peer="spiffe://example.org/a", address=f"192.0.2.{number}:1")
        structlog.get_logger().warning("request", peer="spiffe://example.org/b", address=ADDRESS)

    lines = [one for one in _logged(FloodLimit(2), say) if one["event"] == "request"]
    assert [one["peer"] for one in lines] == ["spiffe://example.org/a"] * 10 + [
        "spiffe://example.org/b"
    ]


def test_errors_left_out_are_counted_where_warnings_are_not_written(
    capfd: pytest.CaptureFixture[str],
) -> None:
    writer = configure_logs("json", "error", refusals_per_second=1)
    _said_at("error", "cannot accept", 100)
    writer.close(30)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    written, left_out = _counted(lines, "cannot accept")
    assert written + left_out == 100


def test_without_a_rate_nothing_is_left_out() -> None:
    assert _counted(_logged(FloodLimit(0), lambda: _refuse(1000)), "peer refused") == (1000, 0)


def test_port_makes_no_peer_of_its_own() -> None:
    def say() -> None:
        log = structlog.get_logger()
        for port in range(1000):
            log.warning("peer refused", address=f"192.0.2.1:{port}")
        log.warning("peer refused", address="192.0.2.2:1")

    lines = _logged(FloodLimit(2), say)
    seen = {one["address"].partition(":")[0] for one in lines if "address" in one}
    assert seen == {"192.0.2.1", "192.0.2.2"}


def test_what_is_left_out_is_told_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.logs._SUMMARY_SECONDS", 0.0)
    told = threading.Event()

    def read(_self: LogWriter, line: str) -> None:
        if "left out" in line:
            told.set()

    monkeypatch.setattr(LogWriter, "_write_whole", read)

    def say() -> None:
        _refuse(1000)
        assert told.wait(20)

    _logged(FloodLimit(1), say)


def test_disk_that_was_full_for_a_while_costs_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.logs._SUMMARY_SECONDS", 0.0)
    write, tried, room = LogWriter._write_whole, threading.Event(), threading.Event()

    def write_if_there_is_room(self: LogWriter, line: str) -> None:
        if not room.is_set():
            if "left out" in line:
                tried.set()
            raise OSError(errno.ENOSPC, "no space left")
        write(self, line)

    monkeypatch.setattr(LogWriter, "_write_whole", write_if_there_is_room)

    def say() -> None:
        _refuse(1000)
        assert tried.wait(20), "nobody was to be told, or the log's thread has died"
        room.set()
        structlog.get_logger().info("there is room")

    lines = _logged(FloodLimit(1), say)
    written, left_out = _counted(lines, "peer refused")
    lost = sum(one["lines"] for one in lines if one["event"] == "log lines lost")
    assert any(one["event"] == "there is room" for one in lines)
    assert written + left_out + lost == 1000


def test_refusals_below_the_level_count_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    writer = configure_logs("json", "error", refusals_per_second=1)
    _refuse(100)
    structlog.get_logger().error("last")
    writer.close(30)
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [one["event"] for one in said] == ["last"]
