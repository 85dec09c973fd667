"""The directory of certificate files: made, safe, and held against other writers.

    with directory.held() as owner: ...

Raises `CertFilesError` with the reason for whatever the disk refuses inside of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.adapters.cert_files.file import Owner, owner_of
from sidecar.core.errors import CertFilesError

DIRECTORY_MODE = 0o755
_LOCK = ".lock"
# Of a file system without locks, such as some network mounts: there, nobody is kept out.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)
_IN_THE_WAY = "something that is no file of ours is in the way there: move it"
_RIGHTS = (
    "what was published before stays; may this account write there? A folder that was replaced "
    "while we run is out of our [sandbox]: restart"
)
_FULL = "what was published before stays; make room on the disk"
_HINTS = {
    errno.EISDIR: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY,
    errno.EINVAL: _IN_THE_WAY,
    errno.EBUSY: "it is a mount point: mount the folder, not one file of it",
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
}


class HeldDirectory:
    """One directory; from its first use on no other process holds it."""

    def __init__(self, path: Path, owner: str | None = None, group: str | None = None) -> None:
        self.path = path
        self._owner_name = owner
        self._group_name = group
        self._alone = threading.Lock()
        self._held: int | None = None

    def close(self) -> None:
        """Let others write there."""
        with self._alone:
            if self._held is not None:
                os.close(self._held)
            self._held = None

    @contextmanager
    def held(self) -> Iterator[Owner]:
        """Hold the directory, made and checked, against everybody else who writes to it."""
        with self._alone:
            try:
                owner = owner_of(self._owner_name, self._group_name)
                self._prepare()
                self._lock()
                yield owner
            except OSError as exc:
                raise _not_written(exc, self.path) from exc

    def _lock(self) -> None:
        """Take the directory for the rest of our life, or of its own."""
        # A file that only we can open: a lock on the folder itself could be taken by whoever may
        # look into it.
        lock = self.path / _LOCK
        if self._held is not None:
            if lock.exists() and os.path.samestat(os.fstat(self._held), lock.lstat()):
                return
            os.close(self._held)
            self._held = None
        # Not for writing: a lock needs none, and would keep the disk from a remount.
        flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(lock, flags, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if isinstance(exc, BlockingIOError):
                os.close(handle)
                raise CertFilesError(
                    f"{self.path}: another process is writing certificate files there",
                    "a sidecar that runs keeps its files itself; give another one a directory of "
                    "its own",
                ) from exc
            if exc.errno not in _NO_LOCKS:
                os.close(handle)
                raise
        self._held = handle

    def _prepare(self) -> None:
        """Make the directory, and refuse one in which somebody else could replace our files."""
        for folder in reversed([self.path, *self.path.parents]):
            if not folder.exists():
                folder.mkdir(mode=0o700)
                folder.chmod(DIRECTORY_MODE)  # whatever the umask
        status = self.path.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            mode = stat.S_IMODE(status.st_mode)
            raise CertFilesError(
                f"{self.path} belongs to uid {status.st_uid} with mode {mode:04o}, "
                f"expected a folder of uid {os.geteuid()} that others cannot write to",
                f"chown and chmod go-w {self.path}",
            )


def _not_written(exc: OSError, directory: Path) -> CertFilesError:
    """Say where the disk refused, and what to do about it."""
    place = exc.filename2 or exc.filename or str(directory)
    hint = _HINTS.get(exc.errno or 0, "what was published before stays")
    return CertFilesError(f"certificate files not written: {place}: {exc.strerror or exc}", hint)
