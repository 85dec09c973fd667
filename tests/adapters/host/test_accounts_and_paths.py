from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sidecar.adapters.host.accounts import account_of, own_account
from sidecar.adapters.host.paths import content_of, disk_of, path_stat, way_to
from sidecar.core.diagnosis.host_facts import Disk, Kind
from sidecar.core.diagnosis.permission import open_to_others
from tests.adapters.accounts import needs_root


def test_own_account_is_who_we_are() -> None:
    own = own_account()
    assert own.uid == os.geteuid()
    assert own == account_of(own.uid)
    if own.name:  # a container's account may have none
        assert own == account_of(own.name)
        assert own.gid in own.groups
        assert own.group


def test_an_account_that_is_none() -> None:
    assert account_of("no-such-account") is None
    nobody = account_of(4_000_000)
    assert nobody is not None
    assert (nobody.uid, nobody.name) == (4_000_000, "")


def test_a_way_begins_at_the_root_and_follows_links(tmp_path: Path) -> None:
    real = tmp_path.resolve()
    (real / "real").mkdir()
    (real / "real" / "file").touch()
    (real / "link").symlink_to("real")
    (real / "real" / "file").chmod(0o640)
    found = way_to(real / "link" / "file")
    assert (found[-1].kind, found[-1].mode, found[-1].uid) == (Kind.FILE, 0o640, os.geteuid())
    way = [Path(place.path) for place in found]
    assert way[0] == Path("/")
    assert way[-5:] == [real, real / "link", real, real / "real", real / "real" / "file"]


def test_whoever_can_replace_a_link_is_on_the_way(tmp_path: Path) -> None:
    real = tmp_path.resolve()
    (real / "safe").mkdir(mode=0o755)
    (real / "safe" / "policy.toml").touch(mode=0o644)
    (real / "open").mkdir()
    (real / "open").chmod(0o777)
    (real / "open" / "policy.toml").symlink_to("../safe/policy.toml")
    own = (0, os.geteuid())
    assert open_to_others(way_to(real / "safe" / "policy.toml"), own) is None
    found = open_to_others(way_to(real / "open" / "policy.toml"), own)
    assert found is not None
    assert found.path == str(real / "open")


def test_a_way_in_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    assert way_to(tmp_path / "link")[-1].kind is Kind.HIDDEN
    (tmp_path / "root").symlink_to("/")
    assert way_to(tmp_path / "root")[-1].path == "/"


def test_only_a_plain_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert content_of(tmp_path / "file") == b"x"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            content_of(path)


def test_a_way_ends_where_nothing_is(tmp_path: Path) -> None:
    way = way_to(tmp_path / "a" / "b")
    assert way[-1].path == str((tmp_path / "a").resolve())
    assert way[-1].kind is Kind.ABSENT


def test_below_a_file_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert way_to(tmp_path / "file" / "x")[-1].kind is Kind.ABSENT


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert way_to(tmp_path / "a")[-1].kind in (Kind.ABSENT, Kind.HIDDEN)


def test_kinds(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
        os.mkfifo(folder / "p")
        assert path_stat(folder / "s").kind is Kind.SOCKET
        assert path_stat(folder / "p").kind is Kind.OTHER
        assert path_stat(folder).kind is Kind.FOLDER


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is hidden from root")
def test_what_may_not_be_looked_at_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    try:
        assert way_to(tmp_path / "closed" / "x")[-1].kind is Kind.HIDDEN
    finally:
        (tmp_path / "closed").chmod(0o700)


@needs_root
def test_hidden_from_an_ordinary_user(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    uid = account_of("nobody")
    assert uid is not None
    os.seteuid(uid.uid)
    try:
        kind = way_to(tmp_path / "closed" / "x")[-1].kind
    finally:
        os.seteuid(0)
    assert kind is Kind.HIDDEN


def test_disk_of_what_is_not_there_yet_is_that_of_its_folder(tmp_path: Path) -> None:
    disk = disk_of(tmp_path / "a" / "b" / "c")
    assert isinstance(disk, Disk)
    assert disk.free_bytes > 0
