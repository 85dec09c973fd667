"""One file on the disk: written with its final owner and mode, synced, compared.

Nothing here knows generations. Raises `OSError`, or `CertFilesError` where a hint helps.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import PlannedFile
from sidecar.reading import read_bytes

# The second: an account that is not in our user namespace, in a container say.
_NOT_OURS_TO_GIVE = (errno.EPERM, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom the files belong to; -1 leaves it as it is."""

    uid: int = -1
    gid: int = -1


def owner_of(user: str | None, group: str | None) -> Owner:
    """Look both names up, each time: an account may be made or changed while we run."""
    try:
        what, name = "account", user
        uid = pwd.getpwnam(user).pw_uid if user else -1
        what, name = "group", group
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError as exc:
        raise CertFilesError(
            f"certificate files not written: this host has no {what} {name!r}",
            "make it, or correct [cert_files] owner or group",
        ) from exc
    return Owner(uid, gid)


def write_file(path: Path, file: PlannedFile, owner: Owner) -> None:
    """Write one file; it has its final owner and mode before content, whatever the umask."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o600)
    with open(handle, "wb") as stream:
        if owner != Owner():
            _give(handle, path, owner)
        os.fchmod(handle, file.mode)
        stream.write(file.content)
        stream.flush()
        sync_to_disk(handle)


def _give(handle: int, path: Path, owner: Owner) -> None:
    try:
        os.fchown(handle, owner.uid, owner.gid)
    except OSError as exc:
        if exc.errno not in _NOT_OURS_TO_GIVE:
            raise
        raise CertFilesError(
            f"certificate files not written: uid {os.geteuid()} may not give {path.name} away",
            "only root changes an owner, and a group only to one that it is a member of",
        ) from exc


def sync_folder(folder: Path) -> None:
    """Make what was made, renamed or removed in a folder last."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_to_disk(handle)
    finally:
        os.close(handle)


def sync_to_disk(
    handle: int, names: object = fcntl, fsync: Callable[[int], None] = os.fsync
) -> None:
    """Make writes last: macOS leaves them in the drive's cache unless asked by F_FULLFSYNC."""
    full = getattr(names, "F_FULLFSYNC", None)
    if full is None:
        fsync(handle)
        return
    try:
        fcntl.fcntl(handle, full)
    except OSError:
        fsync(handle)  # a file system without it, such as a network mount


def is_as_planned(path: Path, file: PlannedFile, owner: Owner) -> bool:
    """Tell whether a file is exactly what is planned, mode and owner included."""
    try:
        status = path.lstat()
        return (
            stat.S_ISREG(status.st_mode)
            and status.st_size == len(file.content)
            and stat.S_IMODE(status.st_mode) == file.mode
            and status.st_uid == (os.geteuid() if owner.uid == -1 else owner.uid)
            and owner.gid in (-1, status.st_gid)
            and read_bytes(path, len(file.content)) == file.content
        )
    except OSError:
        return False
