"""The file of the log: appended to, and opened anew when another one has taken its place.

newsyslog and logrotate rename a log and put a new file there; whoever holds the old one open writes
on into what is about to be compressed and removed. So the path is looked at before each write, and
no signal or pid file is needed. Not part of `logs`, which knows nothing of files.

A file that cannot be written is no reason to stop: what is left over is given back, `trouble` says
why, and the next write tries again. Links are not followed, and what others could read through or
own is not written to: the log must not end up in somebody else's file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o640  # at most; whoever made the file before has chosen another one


class LogFile:
    """One path, and the file that was there when it was last looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None  # why the last write did not go there
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._torn = False  # the file ends within a line

    def write(self, data: bytes) -> bytes:
        """Append whole lines; give what could not be written."""
        try:
            descriptor = self._current()
            if self._torn:
                os.write(descriptor, b"\n")
                self._torn = False
            while data:
                written = os.write(descriptor, data)
                self._torn = data[written - 1 : written] != b"\n"
                data = data[written:]
        except OSError as exc:
            self.trouble = exc.strerror or str(exc)
            return data
        self.trouble = None
        return data

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._identity = None
        self._torn = False

    def _current(self) -> int:
        """Give the descriptor of the file that the path names now."""
        if self._descriptor is not None and self._identity == _identity_at(self.path):
            return self._descriptor
        self.close()
        self._descriptor = _open(self.path)
        status = os.fstat(self._descriptor)
        self._identity = status.st_dev, status.st_ino
        return self._descriptor


def _identity_at(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _open(path: Path) -> int:
    try:
        # Without O_NONBLOCK a named pipe would hold the log's thread until somebody reads.
        descriptor = os.open(path, _FLAGS | os.O_NONBLOCK, _MODE)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.EMLINK):  # FreeBSD says the latter
            raise _refused("a symbolic link") from exc
        raise
    fault = _fault(os.fstat(descriptor))
    if fault:
        os.close(descriptor)
        raise _refused(fault)
    return descriptor


def _fault(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "not a plain file"
    if status.st_uid not in (0, os.geteuid()):
        return f"a file of uid {status.st_uid}"
    # A second name may be one that somebody gave to a file of ours that is no log. (newsyslog
    # links a log that it rotates, for a moment.)
    return "a file with more than one name" if status.st_nlink > 1 else None


def _refused(found: str) -> OSError:
    return OSError(errno.EPERM, f"found {found}, expected a plain file of our own")
