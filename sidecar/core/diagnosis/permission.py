"""Who may do what with a path, by owners and modes: values in, values out.

Access control lists are not looked at: where they matter the check that really connects or reads
finds out.
"""

from __future__ import annotations

from collections.abc import Collection

from sidecar.core.diagnosis.host_facts import Account, Kind, PathStat, Way

READ, WRITE, PASS = 4, 2, 1
_STICKY = 0o1000


def may(account: Account, path: PathStat, bits: int) -> bool:
    """Tell whether an account has these rights on what is at a path."""
    if account.uid == 0:
        return True
    if path.uid == account.uid:
        shift = 6
    elif path.gid == account.gid or path.gid in account.groups:
        shift = 3
    else:
        shift = 0
    return (path.mode >> shift) & bits == bits


def obstacle(account: Account, way: Way, bits: int) -> PathStat | None:
    """Give the first folder that an account cannot pass, or the end if it lacks the rights."""
    for place in way[:-1]:
        if not may(account, place, PASS):
            return place
    return way[-1] if way and not may(account, way[-1], bits) else None


def open_to_others(way: Way, trusted: Collection[int]) -> PathStat | None:
    """Give the first place where an account that is not trusted can replace what comes below.

    In a folder with the sticky bit (/tmp) everybody can add, and only owners can replace. The group
    of root counts as root.
    """
    for place in way:
        if place.kind in (Kind.ABSENT, Kind.HIDDEN):
            return None
        if place.uid not in trusted:
            return place
        if place.kind is Kind.SOCKET or (place.kind is Kind.FOLDER and place.mode & _STICKY):
            continue
        if place.mode & 0o002 or (place.mode & 0o020 and place.gid != 0):
            return place
    return None


def absent(way: Way) -> PathStat | None:
    """Give the first part of a way that is not there."""
    return next((place for place in way if place.kind is Kind.ABSENT), None)


def hidden(way: Way) -> PathStat | None:
    """Give the first part of a way that could not be looked at."""
    return next((place for place in way if place.kind is Kind.HIDDEN), None)


def octal(mode: int) -> str:
    """Give permission bits as chmod takes them."""
    return f"{mode & 0o7777:04o}"
