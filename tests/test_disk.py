"""Files are read, and disks waited for, within bounds: of kind, size, time and threads."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from watchdog.utils import BaseThread as Start

from sidecar import reading
from sidecar.adapters.file_changes import FileChanges
from sidecar.disk import entered, on_disk, read_text_on_disk
from sidecar.reading import PATIENCE_SECONDS, read_bytes, read_text, read_text_now, regular_file
from tests.adapters.deadlines import until, within


def test_file_of_the_most_bytes_is_read_and_a_longer_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for size in (0, 1, 999, 1000):
        path.write_bytes(b"x" * size)
        assert read_bytes(path, 1000) == b"x" * size
    path.write_bytes(b"x" * 1001)
    with pytest.raises(OSError, match="more than 1000 bytes") as caught:
        read_bytes(path, 1000)
    assert caught.value.filename == str(path)


def test_what_is_no_regular_file_is_named_and_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo, link, folder = tmp_path / "fifo", tmp_path / "link", tmp_path / "folder"
    os.mkfifo(fifo)
    folder.mkdir()
    link.symlink_to(fifo)
    sock = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # the name of a socket has little room
    sock.bind("socket")
    with sock:
        for path, kind in (
            (fifo, "a named pipe"),
            (link, "a named pipe"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/zero"), "a device"),
        ):
            for read in (read_text, read_text_now):
                with pytest.raises(OSError, match=f"not a regular file but {kind}") as caught:
                    read(path)
                assert caught.value.filename == str(path)
    with pytest.raises(IsADirectoryError):
        read_text(folder)


def test_pipe_that_takes_the_place_of_a_file_in_between_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "file", os.open
    path.write_text("text")

    def late(name: Any, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return opened(name, flags)

    monkeypatch.setattr("os.open", late)
    with pytest.raises(OSError, match="named pipe"), regular_file(path):
        pass


def test_text_of_now_is_that_of_the_file_and_leaves_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("grün")
    before = threading.active_count()
    assert read_text_now(path) == "grün"
    assert threading.active_count() == before
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text_now(path)


def test_disk_that_hangs_at_the_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(reading, "read_text", lambda _: hang.wait(20))
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.05 s"):
        read_text_now(tmp_path / "file")
    hang.set()


class Slow(AbstractContextManager[str]):
    """Takes its time to be entered, and tells whether it is open."""

    def __init__(self) -> None:
        self.go_on, self.began = threading.Event(), threading.Event()
        self.open = 0
        self.exits = 0

    def __enter__(self) -> str:
        self.began.set()
        assert self.go_on.wait(20)
        self.open += 1
        return "entered"

    def __exit__(self, *_: object) -> None:
        self.open -= 1
        self.exits += 1


@within(30)
async def test_manager_is_entered_once_and_left_to_the_caller(tmp_path: Path) -> None:
    slow = Slow()
    slow.go_on.set()
    assert await entered(slow, str(tmp_path)) == "entered"
    assert (slow.open, slow.exits) == (1, 0)


@pytest.mark.parametrize("how", ["cancelled", "too late"])
async def test_manager_that_was_left_behind_is_exited_when_it_gets_there(
    tmp_path: Path, mock_clock: MockClock, how: str
) -> None:
    slow, caught = Slow(), list[type]()

    async def enter() -> None:
        try:
            await entered(slow, str(tmp_path / how))
        except TimeoutError as exc:
            caught.append(type(exc))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter)
        await until(slow.began.is_set, "the beginning")
        await trio.testing.wait_all_tasks_blocked()
        if how == "cancelled":
            nursery.cancel_scope.cancel()
        else:
            mock_clock.jump(PATIENCE_SECONDS)
    assert caught == ([] if how == "cancelled" else [TimeoutError])
    assert slow.exits == 0
    slow.go_on.set()
    await until(lambda: slow.exits == 1, "the exit")
    assert slow.open == 0


def _watches() -> int:
    """Count the threads of watches."""
    return sum("watchdog" in type(one).__module__ for one in threading.enumerate())


@within(30)
async def test_watch_that_is_abandoned_while_it_is_renewed_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renewal hangs on a disk; the end of the watch waits for nothing, and neither stays."""
    path, hang, hangs, start = tmp_path / "file", threading.Event(), threading.Event(), Start.start
    path.write_text("first")
    before, went_on = _watches(), list[bool]()

    def hanging(thread: Start) -> None:
        """Begin to watch one folder, with the locks that an end of the watch needs, too."""
        hangs.set()
        went_on.append(hang.wait(10))
        start(thread)

    with FileChanges(path) as changes:
        assert _watches() > before
        monkeypatch.setattr(Start, "start", hanging)
        path.write_text("second")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(changes.wait)
            await until(hangs.is_set, "the renewal")
            nursery.cancel_scope.cancel()
    hang.set()
    await until(lambda: _watches() == before, "the end of its threads")
    assert all(went_on)  # and did not have to give up before the event loop did


async def test_one_thread_hangs_for_one_file_however_often_it_is_asked_for(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    hang, calls = threading.Event(), list[int]()

    def call() -> None:
        calls.append(1)
        assert hang.wait(20)

    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_late, call, str(tmp_path / "a"))
            await until(lambda: bool(calls), "the call")
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(PATIENCE_SECONDS)
    assert len(calls) == 1
    (tmp_path / "b").write_text("read")
    assert await read_text_on_disk(tmp_path / "b") == "read"
    hang.set()


async def _expect_late(call: Any, what: str) -> None:
    with pytest.raises(TimeoutError, match="did not answer within 10 s"):
        await on_disk(call, what)
