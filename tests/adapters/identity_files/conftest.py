"""Fixtures: folders, writers, sources that are closed, and clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sidecar import reading
from sidecar.adapters.file_changes import FileChanges
from sidecar.adapters.identity_files import IdentityFiles, IdentityPaths, source
from tests.adapters.identity_files.sources import (
    FAST,
    NEVER,
    OFTEN,
    Asked,
    Deaf,
    Open,
)
from tests.identity_writers import OneByOne, Writer, rename_over
from tests.log_lines import Line, captured


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks are moved by minutes here while a thread reads; that is no disk that hangs."""
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 1e6)


@pytest.fixture
def opened() -> Iterator[Open]:
    """Makes sources, and closes them at the end."""
    with ExitStack() as stack:

        def make(
            paths: IdentityPaths, watch: Any = FileChanges, poll_seconds: float = NEVER
        ) -> IdentityFiles:
            files = IdentityFiles(paths, poll_seconds, watch)
            stack.callback(files.close)
            return files

        yield make


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the files are going to be; not there yet."""
    return tmp_path / "volume/identity"


@pytest.fixture
def folder(place: Path) -> Path:
    """The same, there and empty."""
    place.mkdir(parents=True)
    return place


@pytest.fixture
def writer(folder: Path) -> Writer:
    """The plainest one."""
    return OneByOne(folder, rename_over)


@pytest.fixture
def fine_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody expects two changes within one unit of the file system's clock."""
    monkeypatch.setattr(source, "_UNIT_SECONDS", 0.0)


@pytest.fixture
def fast_clock() -> MockClock:
    """A clock by which a writer's time is over soon."""
    return MockClock(rate=FAST)


@pytest.fixture
def asked(writer: Writer, opened: Open, nursery: trio.Nursery) -> Callable[[], Asked]:
    """Asks a source without word of changes; the test has to hold the clock."""
    return lambda: Asked(opened(writer.paths, Deaf, OFTEN), nursery)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What the source logs."""
    return captured(monkeypatch, source)
