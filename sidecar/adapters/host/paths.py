"""Paths as they are: kind, owner and mode of each folder on the way, and what disk is below."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sidecar.core.diagnosis.finding import Unknown
from sidecar.core.diagnosis.host_facts import Disk, Kind, PathStat, Way

_KINDS = {stat.S_IFDIR: Kind.FOLDER, stat.S_IFREG: Kind.FILE, stat.S_IFSOCK: Kind.SOCKET}


def way_to(path: str | Path) -> Way:
    """Give a path and all folders above it, links resolved, the root first.

    It ends with the first part that is not there, or that this account may not look at.
    """
    try:
        real = Path(os.path.realpath(path))
    except OSError:
        real = Path(os.path.abspath(path))
    way: list[PathStat] = []
    for place in (*reversed(real.parents), real):
        way.append(path_stat(place))
        if way[-1].kind in (Kind.ABSENT, Kind.HIDDEN):
            break
    return tuple(way)


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
