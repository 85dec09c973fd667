"""The log's file: found again after a rotation, given up when it is not ours, never in the way."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from sidecar.log_file import LogFile
from sidecar.logs import configure_logs
from tests.log_lines import Line

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "sidecar.log"


@pytest.fixture(name="file")
def _file(path: Path) -> Iterator[LogFile]:
    file = LogFile(path)
    yield file
    file.close()


def test_line_is_appended_to_what_is_there(path: Path, file: LogFile) -> None:
    path.write_text("before\n")
    assert file.write(b"after\n") == b""
    assert path.read_text() == "before\nafter\n"


def test_new_file_is_not_for_everybody(path: Path, file: LogFile) -> None:
    old = os.umask(0)
    try:
        file.write(b"line\n")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_file_that_was_made_for_us_keeps_its_mode(path: Path, file: LogFile) -> None:
    path.touch()
    path.chmod(0o604)
    file.write(b"line\n")
    assert path.stat().st_mode & 0o777 == 0o604


def test_log_that_was_renamed_is_begun_anew(path: Path, file: LogFile) -> None:
    file.write(b"first\n")
    path.rename(f"{path}.0")
    file.write(b"second\n")
    assert Path(f"{path}.0").read_text() == "first\n"
    assert path.read_text() == "second\n"


def test_log_that_newsyslog_replaced_is_followed(path: Path, file: LogFile) -> None:
    file.write(b"first\n")
    os.link(path, f"{path}.0")  # as it keeps the old one
    file.write(b"still the old one\n")
    new = path.with_suffix(".zAbCdEf")
    new.touch()
    new.replace(path)
    file.write(b"second\n")
    assert Path(f"{path}.0").read_text() == "first\nstill the old one\n"
    assert path.read_text() == "second\n"


def test_log_that_was_removed_is_begun_anew(path: Path, file: LogFile) -> None:
    file.write(b"first\n")
    path.unlink()
    file.write(b"second\n")
    assert path.read_text() == "second\n"


def test_log_that_was_truncated_goes_on_at_its_beginning(path: Path, file: LogFile) -> None:
    file.write(b"first\n")
    os.truncate(path, 0)  # logrotate's copytruncate
    file.write(b"second\n")
    assert path.read_text() == "second\n"


def _link(path: Path) -> None:
    path.with_name("elsewhere").touch()
    path.symlink_to("elsewhere")


def _link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def _second_name(path: Path) -> None:
    path.touch()
    path.with_name("elsewhere").hardlink_to(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("in_the_way", [_link, _link_to_nothing, _second_name, _folder, _pipe])
def test_what_is_no_file_of_ours_is_not_written(
    path: Path, file: LogFile, in_the_way: object
) -> None:
    assert callable(in_the_way)
    in_the_way(path)
    assert file.write(b"line\n") == b"line\n"
    assert file.trouble
    assert all(one.stat().st_size == 0 for one in path.parent.iterdir() if one.is_file())
    assert not path.with_name("nothing").exists()


def test_pipe_that_somebody_reads_is_not_written(path: Path, file: LogFile) -> None:
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert file.write(b"line\n") == b"line\n"
    assert os.read(reading, 10) == b""
    os.close(reading)


@AS_ROOT
def test_file_of_somebody_else_is_not_written(path: Path, file: LogFile) -> None:
    path.touch()
    os.chown(path, 12345, -1)
    assert file.write(b"line\n") == b"line\n"
    assert "12345" in (file.trouble or "")
    assert path.read_text() == ""


def test_trouble_ends_when_what_was_in_the_way_is_gone(path: Path, file: LogFile) -> None:
    path.mkdir()
    assert file.write(b"first\n") == b"first\n"
    path.rmdir()
    assert file.write(b"second\n") == b""
    assert file.trouble is None
    assert path.read_text() == "second\n"


def test_folder_that_is_missing_is_trouble_and_is_not_made(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "missing" / "sidecar.log")
    assert file.write(b"line\n") == b"line\n"
    assert file.trouble
    assert not (tmp_path / "missing").exists()


def test_line_that_the_disk_took_half_of_is_ended_when_there_is_room(
    path: Path, file: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [4]

    def until_full(descriptor: int, data: bytes) -> int:
        if not room:
            return write(descriptor, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", until_full)
    assert file.write(b"first\n") == b"t\n"
    assert file.trouble == "No space left on device"
    room.clear()
    assert file.write(b"second\n") == b""
    assert path.read_text() == "firs\nsecond\n"


# Through the writer, with standard error as the other end.


@pytest.fixture
def _plain_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Watched(LogFile):
    """A file that tells when it has been asked to write."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._written = threading.Semaphore(0)

    def write(self, data: bytes) -> bytes:
        """Write, and tell."""
        left = super().write(data)
        self._written.release()
        return left

    def wait(self) -> None:
        """Wait until lines were written; what is logged next is not among them."""
        assert self._written.acquire(timeout=20)


def _lines(text: str) -> list[Line]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("_plain_structlog")
def test_log_with_a_file_leaves_standard_error_alone(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = configure_logs("json", "info", file=LogFile(path))
    structlog.get_logger().info("one")
    structlog.get_logger().info("two")
    writer.close(30)
    assert [line["event"] for line in _lines(path.read_text())] == ["one", "two"]
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("_plain_structlog")
def test_file_that_cannot_be_written_is_told_once_and_the_log_is_on_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Watched(tmp_path / "missing" / "sidecar.log")
    writer = configure_logs("json", "info", file=file)
    for number in range(3):
        structlog.get_logger().info("line", number=number)
        file.wait()
    writer.close(30)
    lines = _lines(capfd.readouterr().err)
    assert [line["number"] for line in lines if line["event"] == "line"] == [0, 1, 2]
    (told,) = [line for line in lines if line["event"] != "line"]
    assert told["event"] == "log file not written"
    assert told["file"] == str(file.path)
    assert told["reason"]


@pytest.mark.usefixtures("_plain_structlog")
def test_file_that_can_be_written_again_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "later" / "sidecar.log"
    file = Watched(path)
    writer = configure_logs("json", "info", file=file)
    structlog.get_logger().info("one")
    file.wait()
    file.wait()  # the line about the trouble
    path.parent.mkdir()
    structlog.get_logger().info("two")
    writer.close(30)
    assert [line["event"] for line in _lines(capfd.readouterr().err)] == [
        "one",
        "log file not written",
    ]
    assert [line["event"] for line in _lines(path.read_text())] == [
        "two",
        "log file written again",
    ]
