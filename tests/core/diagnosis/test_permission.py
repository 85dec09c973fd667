from __future__ import annotations

import pytest

from sidecar.core.diagnosis.host_facts import Account, Kind, PathStat, Way
from sidecar.core.diagnosis.permission import (
    PASS,
    READ,
    WRITE,
    absent,
    hidden,
    may,
    obstacle,
    octal,
    open_to_others,
)

ADA = Account("ada", 1000, 1000, frozenset({1000, 20}))
ROOT = Account("root", 0, 0)


def at(mode: int, uid: int = 0, gid: int = 0, kind: Kind = Kind.FILE) -> PathStat:
    return PathStat("/x", kind, mode, uid, gid)


def folder(mode: int, uid: int = 0, gid: int = 0) -> PathStat:
    return at(mode, uid, gid, Kind.FOLDER)


@pytest.mark.parametrize(
    ("account", "path", "bits", "allowed"),
    [
        pytest.param(ADA, at(0o600, 1000), READ | WRITE, True, id="owner"),
        pytest.param(ADA, at(0o640, 0, 1000), READ, True, id="own group"),
        pytest.param(ADA, at(0o640, 0, 20), READ, True, id="another group of hers"),
        pytest.param(ADA, at(0o644, 0, 0), READ, True, id="others"),
        pytest.param(ROOT, at(0o000, 1000), READ | WRITE, True, id="root may all"),
        pytest.param(ADA, at(0o640, 0, 0), READ, False, id="not her group"),
        pytest.param(ADA, at(0o640, 0, 20), WRITE, False, id="her group may only read"),
        pytest.param(ADA, at(0o044, 1000), READ, False, id="the owner's bits count for the owner"),
        pytest.param(ADA, at(0o604, 0, 20), READ, False, id="the group's bits count for the group"),
        pytest.param(ADA, at(0o644), READ | WRITE, False, id="one of two"),
    ],
)
def test_may(account: Account, path: PathStat, bits: int, allowed: bool) -> None:
    assert may(account, path, bits) is allowed


def test_an_obstacle_is_the_first_folder_that_cannot_be_passed() -> None:
    first, second = folder(0o700), folder(0o750)
    assert obstacle(ADA, (folder(0o755), first, second, at(0o644)), READ) is first
    assert obstacle(ROOT, (first, second, at(0o000)), READ) is None


def test_the_end_needs_its_own_rights() -> None:
    end = at(0o640)
    assert obstacle(ADA, (folder(0o711), end), READ) is end
    assert obstacle(ADA, (folder(0o711), at(0o644)), READ) is None
    assert obstacle(ADA, (folder(0o711), folder(0o755)), READ | PASS) is None
    assert obstacle(ADA, (), READ) is None


@pytest.mark.parametrize(
    ("way", "is_open"),
    [
        pytest.param((folder(0o755), at(0o644)), False, id="root's alone"),
        pytest.param((folder(0o755), at(0o644, 1000)), True, id="somebody else's file"),
        pytest.param((folder(0o755, 1000), at(0o644)), True, id="below somebody else's folder"),
        pytest.param((folder(0o777), at(0o644)), True, id="everybody replaces files there"),
        pytest.param((folder(0o1777), at(0o644)), False, id="sticky"),
        pytest.param((folder(0o775, 0, 20), at(0o644)), True, id="a group replaces files there"),
        pytest.param((folder(0o775), at(0o644)), False, id="the group of root"),
        pytest.param((folder(0o755), at(0o666)), True, id="everybody writes to it"),
        pytest.param((folder(0o755), at(0o777, kind=Kind.SOCKET)), False, id="a socket's own mode"),
        pytest.param(
            (PathStat("/x", Kind.ABSENT), folder(0o777)), False, id="what is not there is no door"
        ),
    ],
)
def test_open_to_others(way: Way, is_open: bool) -> None:
    assert (open_to_others(way, {0}) is not None) is is_open


def test_trusted_accounts_may_own() -> None:
    assert open_to_others((folder(0o755, 1000), at(0o644, 1000)), {0, 1000}) is None


def test_parts_that_are_missing_are_found() -> None:
    gone, unseen = PathStat("/a", Kind.ABSENT), PathStat("/b", Kind.HIDDEN)
    assert absent((folder(0o755), gone)) is gone
    assert hidden((folder(0o755), unseen)) is unseen
    assert absent((folder(0o755),)) is None
    assert octal(0o1755) == "1755"
