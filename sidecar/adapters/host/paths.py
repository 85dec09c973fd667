"""Paths as they are: kind, owner and mode of each folder on the way, and what disk is below."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Disk, Kind, PathStat, Way
from sidecar.reading import read_bytes

# More than any file has that is looked into here.
_MOST_BYTES = 1024 * 1024
_MOST_LINKS = 40  # as the systems have it
_KINDS = {stat.S_IFDIR: Kind.FOLDER, stat.S_IFREG: Kind.FILE, stat.S_IFSOCK: Kind.SOCKET}


def way_to(path: str | Path) -> Way:
    """Give a path and all folders on the way to it, the root first, links followed.

    The folders that hold links are on it, and the links with their owners: whoever can replace one
    decides where the path leads. It ends with the first part that is not there, or that this
    account may not look at.
    """
    way = [path_stat("/")]
    place, left, links = Path("/"), _parts(os.path.abspath(path)), 0
    while left:
        name = left.pop()
        place = place.parent if name == ".." else place / name
        target = _target(place) if name != ".." and links < _MOST_LINKS else ""
        if target:
            links += 1
            left += _parts(target)
            link, place = place, Path("/") if target.startswith("/") else place.parent
            way += [_link_stat(link), path_stat(place)]
        else:
            way.append(path_stat(place))
        if way[-1].kind in (Kind.ABSENT, Kind.HIDDEN):
            break
    return tuple(way)


def _parts(path: str) -> list[str]:
    """Give the names of a path, the last one first."""
    return [one for one in reversed(path.split("/")) if one not in ("", ".")]


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""  # no link, or not to be looked at


def _link_stat(path: Path) -> PathStat:
    try:
        found = os.lstat(path)
    except OSError:
        return PathStat(str(path), Kind.ABSENT)
    # Its own mode means nothing: everybody may follow it.
    return PathStat(str(path), Kind.OTHER, 0o555, found.st_uid, found.st_gid)


def path_stat(path: str | Path) -> PathStat:
    """Give what a path leads to."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return PathStat(str(path), Kind.ABSENT)
    except OSError:
        return PathStat(str(path), Kind.HIDDEN)
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), Kind.OTHER)
    return PathStat(str(path), kind, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def content_of(path: str | Path) -> bytes:
    """Read a file, or raise `OSError`: those who own the folder may have put anything there."""
    return read_bytes(Path(path), _MOST_BYTES)


def disk_of(path: str | Path) -> Disk | Unknown:
    """Give what is left on the disk of a path, or of the nearest folder above that is there."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        found = os.statvfs(place)
    except OSError as exc:
        return Unknown(f"{place}: {exc.strerror}")
    # Some file systems make inodes as they are needed, and say 0 of 0.
    inodes = found.f_favail if found.f_files else None
    return Disk(found.f_bavail * found.f_frsize, inodes)
