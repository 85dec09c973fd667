"""The log gives way: what cannot be written is counted, and nobody waits for a reader."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import structlog

from sidecar.logs import LogWriter


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
    writer.close(0.1)  # returns, though nobody reads
    os.close(reading)
