"""The folder for the other host: modes before content, whole files, and nobody else's hands."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar.adapters.host_folder import PUBLIC, SECRET, HostFolder
from sidecar.core.errors import RegistrationError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def folder(tmp_path: Path) -> HostFolder:
    folder = HostFolder(tmp_path / "a" / "mac")
    folder.prepare()
    return folder


@pytest.fixture(params=[0o000, 0o077], ids=["open umask", "close umask"])
def umask(request: pytest.FixtureRequest) -> object:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_folder_is_for_us_alone(tmp_path: Path) -> None:
    HostFolder(tmp_path / "mac").prepare()
    assert mode(tmp_path / "mac") == 0o700


@pytest.mark.usefixtures("umask")
def test_file_has_its_mode_before_it_has_content(folder: HostFolder) -> None:
    with folder.replacing("join-token", SECRET) as put:
        (new,) = folder.path.iterdir()
        assert (mode(new), new.stat().st_size) == (SECRET, 0)
        put(b"secret\n")
        assert not (folder.path / "join-token").exists()
    assert mode(folder.path / "join-token") == SECRET
    assert (folder.path / "join-token").read_bytes() == b"secret\n"
    assert folder.write("agent.conf", b"text", PUBLIC)
    assert mode(folder.path / "agent.conf") == PUBLIC


def test_nothing_new_means_nothing_written(folder: HostFolder) -> None:
    assert folder.write("agent.conf", b"text", PUBLIC)
    before = (folder.path / "agent.conf").stat()
    assert not folder.write("agent.conf", b"text", PUBLIC)
    after = (folder.path / "agent.conf").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("what", ["content", "mode", "link"])
def test_what_was_changed_is_put_right(folder: HostFolder, what: str) -> None:
    folder.write("agent.conf", b"text", PUBLIC)
    file = folder.path / "agent.conf"
    if what == "content":
        file.write_text("other")
    elif what == "mode":
        file.chmod(0o666)
    else:
        file.rename(folder.path / "target")
        file.symlink_to("target")
    assert folder.write("agent.conf", b"text", PUBLIC)
    assert not file.is_symlink()
    assert (file.read_bytes(), mode(file)) == (b"text", PUBLIC)


def test_link_in_the_way_is_replaced_and_not_followed(folder: HostFolder, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    for name in ("join-token", ".join-token.new"):
        (folder.path / name).symlink_to(victim)
    folder.write("join-token", b"secret", SECRET)
    assert victim.read_text() == "theirs"
    assert not (folder.path / "join-token").is_symlink()


def test_trouble_half_way_leaves_what_was_there(folder: HostFolder) -> None:
    folder.write("join-token", b"old", SECRET)

    def use() -> None:
        with folder.replacing("join-token", SECRET) as put:
            put(b"new")
            raise RegistrationError("no token")

    with pytest.raises(RegistrationError, match="no token"):
        use()
    assert [path.name for path in folder.path.iterdir()] == ["join-token"]
    assert (folder.path / "join-token").read_bytes() == b"old"


@pytest.mark.parametrize("bits", [0o020, 0o002, 0o022])
def test_folder_that_others_can_write_to_is_refused(folder: HostFolder, bits: int) -> None:
    folder.path.chmod(0o700 | bits)
    for check in (folder.check, folder.prepare):
        with pytest.raises(RegistrationError, match="others cannot write to") as raised:
            check()
        assert f"{0o700 | bits:04o}" in raised.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_folder_of_somebody_else_is_refused(folder: HostFolder) -> None:
    os.chown(folder.path, 4711, -1)
    with pytest.raises(RegistrationError, match="belongs to uid 4711"):
        folder.check()


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mac").touch()
    with pytest.raises(RegistrationError, match="is no folder"):
        HostFolder(tmp_path / "mac").check()


def test_folder_that_is_not_there_yet_is_fine_to_look_at(tmp_path: Path) -> None:
    HostFolder(tmp_path / "mac").check()
    assert not (tmp_path / "mac").exists()


def test_disk_that_refuses_is_told_with_the_place(folder: HostFolder) -> None:
    (folder.path / "agent.conf").mkdir()
    (folder.path / "agent.conf" / "x").touch()
    with pytest.raises(RegistrationError) as raised:
        folder.write("agent.conf", b"text", PUBLIC)
    assert str(folder.path) in raised.value.message
    assert "\n" not in raised.value.message
    assert not (folder.path / ".agent.conf.new").exists()
