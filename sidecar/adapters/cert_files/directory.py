"""The directory of certificate files: made, safe, and held against other writers.

    with directory.held() as owner: ...

Raises `CertFilesError` with the reason for whatever the disk refuses inside of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from sidecar.adapters.cert_files.file import Owner, owner_of
from sidecar.core.errors import CertFilesError

log = structlog.get_logger()

DIRECTORY_MODE = 0o755
_WRITABLE_BY_OTHERS = 0o022
# Every account of a host may write to these, also where they are file systems of their own.
_HOST_FOLDERS = ("/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock")  # noqa: S108
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")
_LOCK = ".lock"
# Of a file system without locks, such as some network mounts: there, nobody is kept out.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)
_IN_THE_WAY = "something that is no file of ours is in the way there: move it"
_RIGHTS = (
    "what was published before stays; may this account write there? A folder that was made or "
    "replaced after the start is out of our [sandbox]: restart"
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

    def __init__(
        self,
        path: Path,
        owner: str | None = None,
        group: str | None = None,
        unsafe_shared: bool = False,
    ) -> None:
        self.path = path
        self._owner_name = owner
        self._group_name = group
        self._unsafe_shared = unsafe_shared
        self._shared = ""  # who else may write there
        self._warned = ""
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
        # Without waiting: in a shared folder it may be a pipe that somebody has put there.
        flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
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
        self._shared = _others_who_may_write(self.path.stat())
        if self._shared and not self._unsafe_shared and not is_volume(self.path):
            raise CertFilesError(
                f"{self.path} {self._shared}, expected a folder of uid {os.geteuid()} "
                "that others cannot write to",
                f"give a subfolder as [cert_files] directory ({self.path / 'certs'}), which is "
                f"made with the right mode; or chown and chmod go-w {self.path}; or allow it: "
                "[cert_files] unsafe_shared_directory = true",
            )

    def warn_if_shared(self) -> None:
        """Log once, and again when it changes, who could replace what is published."""
        if self._shared and self._shared != self._warned:
            log.warning(
                "certificate files in a shared directory",
                directory=str(self.path),
                found=self._shared,
                risk="whoever can write there can put other files in their place",
                hint=f"a subfolder, such as {self.path / 'certs'}, is safe",
            )
        self._warned = self._shared


def _others_who_may_write(status: os.stat_result) -> str:
    """Return what lets others replace files in a folder, or nothing."""
    if status.st_uid in (0, os.geteuid()) and not status.st_mode & _WRITABLE_BY_OTHERS:
        return ""
    return f"belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}"


def is_volume(folder: Path) -> bool:
    """Tell whether a folder is a mount point that somebody gave to us, such as an emptyDir.

    Kubernetes makes an emptyDir 0777 (1777 in memory) and root's, and mounts it into the containers
    that its pod names: these are who can write there. The folders of _HOST_FOLDERS are for every
    account, and the owner of a folder can replace files in it whatever its mode: not without the
    key that allows it.
    """
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()) or not is_mount_point(folder):
        return False
    for name in _HOST_FOLDERS:
        try:
            if os.path.samestat(status, os.stat(name)):  # by itself, a link or a bind mount
                return False
        except OSError:
            continue  # this system has none
    return True


def is_mount_point(folder: Path, mounts: Path = _MOUNTS) -> bool:
    """Tell whether something is mounted on a folder, also a folder of the same file system."""
    place = os.path.realpath(folder)
    if os.path.ismount(place):
        return True
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        return False  # macOS has neither this file nor bind mounts
    # proc_pid_mountinfo(5): the fifth field is the mount point; a space in it is \040.
    points = (line.split(b" ")[4] for line in lines if line.count(b" ") > 4)
    return os.fsencode(place) in {
        _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), point) for point in points
    }


def _not_written(exc: OSError, directory: Path) -> CertFilesError:
    """Say where the disk refused, and what to do about it."""
    place = exc.filename2 or exc.filename or str(directory)
    hint = _HINTS.get(exc.errno or 0, "what was published before stays")
    return CertFilesError(f"certificate files not written: {place}: {exc.strerror or exc}", hint)
