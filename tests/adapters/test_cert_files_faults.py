"""Faults of the disk: whatever fails, the published generation stays, and the error says why."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from sidecar.adapters.cert_files import CertFiles
from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import FilePlan
from tests.adapters.accounts import NOBODY, OWNER, needs_root
from tests.adapters.disk import (
    assert_generation,
    assert_published,
    generations,
    make_old,
    owner_of,
    snapshot,
)
from tests.adapters.file_processes import MortalPublisher, as_user, generation, holding
from tests.plans import JWT, LAYOUTS, content, plans, token

OpenFiles = Callable[..., CertFiles]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def first() -> FilePlan:
    return plans(1, "richest")[0]


@pytest.fixture
def second() -> FilePlan:
    return plans(1, "richest")[0]


def refused(act: Callable[[], object], *words: str | int) -> None:
    """`act` fails with an error that has all these words in its message or hint."""
    with pytest.raises(CertFilesError) as caught:
        act()
    said = f"{caught.value.message}\n{caught.value.hint}"
    for word in words:
        text = os.strerror(word) if isinstance(word, int) else word
        assert text in said, said
    assert caught.value.hint
    assert "PRIVATE" not in said


# Room.


def fill(filler: Path) -> None:
    """Take the room that is left."""
    with open(filler, "wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"x" * 4096)


@layouts
def test_full_disk_keeps_the_published_generation_and_recovers(
    small_disk: Callable[[str], Path], open_files: OpenFiles, layout: str
) -> None:
    disk = small_disk("size=256k")
    directory = disk / "certs"
    files, (first, second) = open_files(directory), plans(2, layout)
    files.publish(first)
    files.replace(token(1))
    filler = disk / "filler"
    fill(filler)
    before = snapshot(directory).keys()
    for _ in range(3):
        refused(lambda: files.publish(second), errno.ENOSPC, str(directory), "make room")
        refused(lambda: files.replace(token(2)), errno.ENOSPC, str(directory), "make room")
        assert_published(directory, first)
        assert (directory / JWT).read_bytes() == token(1).content
        # What was written in vain takes no room from the next attempt.
        assert snapshot(directory).keys() == before
    filler.unlink()
    assert files.publish(second) is not None
    assert files.replace(token(2))
    assert_published(directory, second)


@pytest.mark.parametrize("inodes", range(8, 30))
def test_disk_without_inodes_keeps_the_published_generation(
    small_disk: Callable[[str], Path],
    open_files: OpenFiles,
    first: FilePlan,
    second: FilePlan,
    inodes: int,
) -> None:
    """It may run out at any step, the link's included."""
    directory = small_disk(f"size=1m,nr_inodes={inodes}") / "certs"
    files = open_files(directory)
    try:
        files.publish(first)
    except CertFilesError:
        return  # there was never room for one
    for _ in range(3):
        try:
            files.publish(second)
        except CertFilesError:
            assert_published(directory, first)
            assert generations(directory) == {"generation-1"}
        else:
            assert_published(directory, second)


def test_disk_filled_by_our_own_generations_is_emptied_of_them(
    small_disk: Callable[[str], Path], open_files: OpenFiles
) -> None:
    """Many rotations in a short time fill a small disk; later there is nothing left to keep."""
    directory = small_disk("size=128k") / "certs"
    files, some = open_files(directory), plans(20)

    def publish_all() -> None:
        for one in some:
            files.publish(one)

    refused(publish_all, errno.ENOSPC)
    make_old(directory)
    assert files.publish(some[-1]) is not None
    assert_published(directory, some[-1])


# Rights.


@layouts
def test_read_only_disk_keeps_the_published_generation_and_recovers(
    small_disk: Callable[[str], Path], open_files: OpenFiles, layout: str
) -> None:
    disk = small_disk("size=1m")
    directory = disk / "certs"
    files, (first, second) = open_files(directory), plans(2, layout)
    files.publish(first)
    files.replace(token(1))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused(lambda: files.publish(second), errno.EROFS, str(directory), "write there")
    refused(lambda: files.replace(token(2)), errno.EROFS, str(directory), "write there")
    assert_published(directory, first)
    assert files.publish(first) is None  # nothing to write is no fault
    assert not files.replace(token(1))
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    files.publish(second)
    assert_published(directory, second)


def test_directory_made_read_only_keeps_the_published_generation(open_folder: Path) -> None:
    """Root may write anyway, so another account does it."""
    certs = open_folder / "certs"
    if NOBODY:
        # It makes the directory itself, and owns it.
        open_folder.chmod(0o777)
    assert as_user(NOBODY, "publish-once", certs) == {"name": "generation-1"}
    before = generation(certs)
    certs.chmod(0o555)
    answer = as_user(NOBODY, "publish-once", certs)
    assert os.strerror(errno.EACCES) in answer["message"]
    assert str(certs) in answer["message"]
    assert "write there" in answer["hint"]
    same = generation(certs) == before
    assert same
    certs.chmod(0o755)
    assert as_user(NOBODY, "publish-once", certs) == {"name": "generation-2"}
    open_folder.chmod(0o755)


@needs_root
def test_directory_of_another_account_is_told(open_folder: Path, open_files: OpenFiles) -> None:
    """Root made it once; now we run as somebody else."""
    certs = open_folder / "certs"
    (planned,) = plans(1)
    files = open_files(certs)
    files.publish(planned)
    files.close()
    answer = as_user("nobody", "publish-once", certs)
    assert os.strerror(errno.EACCES) in answer["message"]
    assert "write there" in answer["hint"]
    assert_published(certs, planned)


@pytest.mark.parametrize(
    ("whose", "told"),
    [
        pytest.param({"owner": "no-such-account"}, "account 'no-such-account'", id="owner"),
        pytest.param({"group": "no-such-group"}, "group 'no-such-group'", id="group"),
    ],
)
def test_owner_that_does_not_exist_keeps_the_published_generation(
    directory: Path,
    open_files: OpenFiles,
    first: FilePlan,
    second: FilePlan,
    whose: dict[str, str],
    told: str,
) -> None:
    files = open_files(directory)
    files.publish(first)
    files.replace(token(1))
    files.close()
    before = snapshot(directory)
    theirs = open_files(directory, **whose)
    for act in (lambda: theirs.publish(second), lambda: theirs.replace(token(2))):
        refused(act, f"no {told}", "[cert_files] owner or group")
    assert snapshot(directory) == before
    assert_published(directory, first)


@pytest.mark.parametrize(
    "whose",
    [
        pytest.param({"owner": "root"}, id="owner"),
        pytest.param({"group": "daemon"}, id="group of which we are no member"),
    ],
)
def test_who_is_not_root_cannot_give_files_away(open_folder: Path, whose: dict[str, str]) -> None:
    open_folder.chmod(0o777)
    certs = open_folder / "certs"
    assert as_user(NOBODY, "publish-once", certs) == {"name": "generation-1"}
    before = snapshot(certs)
    answer = as_user(NOBODY, "publish-once", certs, **whose)
    assert "may not give svid.pem away" in answer["message"]
    assert "only root changes an owner" in answer["hint"]
    # An attempt leaves its mark on the times of the directory only.
    assert snapshot(certs).keys() == before.keys()
    assert generations(certs) == {"generation-1"}
    open_folder.chmod(0o755)


@needs_root
def test_who_is_not_root_can_name_itself(open_folder: Path) -> None:
    open_folder.chmod(0o777)
    certs = open_folder / "certs"
    assert as_user("nobody", "publish-once", certs, **OWNER) == {"name": "generation-1"}
    assert owner_of(certs / "generation-1" / "svid_key.pem")[0] == owner_of(certs)[0] != 0
    open_folder.chmod(0o755)


# The directory.


@layouts
def test_directory_removed_by_somebody_is_made_again(
    directory: Path, files: CertFiles, layout: str
) -> None:
    first, second = plans(2, layout)
    files.publish(first)
    for planned in (first, second):
        shutil.rmtree(directory)
        assert files.publish(planned) == "generation-1"
        assert_published(directory, planned)
    shutil.rmtree(directory)
    assert files.replace(token(1))
    assert (directory / JWT).read_bytes() == token(1).content


def test_directory_that_was_exchanged_is_held_like_the_one_of_before(
    directory: Path, files: CertFiles, open_files: OpenFiles, first: FilePlan
) -> None:
    files.publish(first)
    directory.rename(directory.with_name("aside"))
    files.publish(first)
    refused(lambda: open_files(directory).publish(first), "another process")
    assert open_files(directory.with_name("aside")).publish(first) is None


def test_directory_that_is_a_file_is_an_error_and_stays(
    directory: Path, open_files: OpenFiles, first: FilePlan
) -> None:
    directory.write_bytes(b"a file")
    for place in (directory, directory / "below"):
        refused(lambda place=place: open_files(place).publish(first), str(place), "in the way")  # type: ignore[misc]
    assert directory.read_bytes() == b"a file"


@layouts
def test_directory_may_be_a_link_to_another_file_system(
    directory: Path, files: CertFiles, small_disk: Callable[[str], Path], layout: str
) -> None:
    disk = small_disk("size=1m")
    directory.symlink_to(disk)
    first, second = plans(2, layout)
    for planned in (first, second):
        assert files.publish(planned) is not None
        assert files.replace(token(len(generations(disk))))
        assert_published(directory, planned)
        assert_published(disk, planned)
    assert directory.is_symlink()
    filler = disk / "filler"
    fill(filler)
    refused(lambda: files.publish(first), errno.ENOSPC)
    assert_published(directory, second)


def test_link_that_leads_nowhere_is_an_error_and_stays(
    directory: Path, files: CertFiles, first: FilePlan
) -> None:
    directory.symlink_to("nowhere")
    refused(lambda: files.publish(first), str(directory), "in the way")
    assert os.readlink(directory) == "nowhere"


# Names that are taken.

NAMES = ["tls.crt", "tls.key", "ca.crt", "both.pem", "ca.partner.example.crt", JWT]


def write(files: CertFiles, planned: FilePlan, number: int) -> None:
    """Write all that there is, each whatever becomes of the other."""
    try:
        files.replace(token(number))
    finally:
        files.publish(planned)


@pytest.mark.parametrize("name", NAMES)
def test_directory_in_place_of_a_name_is_told_and_stays(
    directory: Path, files: CertFiles, first: FilePlan, second: FilePlan, name: str
) -> None:
    write(files, first, 1)
    (directory / name).unlink()
    (directory / name).mkdir()
    (directory / name / "a").write_bytes(b"of somebody")
    for _ in range(2):
        refused(lambda: write(files, second, 2), errno.EISDIR, f"{directory}/{name}:", "in the way")
        # The links lead to one generation; which of them it is, the plain path cannot tell.
        assert_generation(directory, second)
        assert (directory / name / "a").read_bytes() == b"of somebody"
    shutil.rmtree(directory / name)
    write(files, second, 2)
    assert_published(directory, second)
    assert (directory / JWT).read_bytes() == token(2).content


@needs_root
@pytest.mark.parametrize("name", NAMES)
def test_name_that_is_a_mount_point_is_told_and_stays(
    directory: Path,
    files: CertFiles,
    first: FilePlan,
    second: FilePlan,
    mount: Callable[..., Callable[[], object]],
    tmp_path: Path,
    name: str,
) -> None:
    """As when a container has one file of a host mounted."""
    write(files, first, 1)
    mounted = tmp_path / "mounted"
    mounted.write_bytes(b"of the host")
    (directory / name).unlink()
    (directory / name).touch()
    unmount = mount(directory / name, "--bind", str(mounted))
    for _ in range(2):
        refused(
            lambda: write(files, second, 2), errno.EBUSY, f"{directory}/{name}:", "mount the folder"
        )
        assert_generation(directory, second)
        assert (directory / name).read_bytes() == mounted.read_bytes() == b"of the host"
    unmount()
    write(files, second, 2)
    assert_published(directory, second)


@pytest.mark.parametrize("name", NAMES)
def test_foreign_file_in_place_of_a_name_gives_way(
    directory: Path, files: CertFiles, first: FilePlan, second: FilePlan, name: str
) -> None:
    directory.mkdir()
    (directory / name).write_bytes(b"of somebody")
    (directory / name).chmod(0o666)
    write(files, first, 1)
    assert_published(directory, first)
    (directory / name).unlink()
    os.mkfifo(directory / name)
    write(files, second, 2)
    assert_published(directory, second)
    assert (directory / JWT).read_bytes() == token(2).content


def test_current_that_is_a_directory_is_told_and_stays(
    directory: Path, files: CertFiles, first: FilePlan
) -> None:
    (directory / "current").mkdir(parents=True)
    (directory / "current" / "svid.pem").write_bytes(b"of somebody")
    refused(lambda: files.publish(first), errno.EISDIR, f"{directory}/current:", "in the way")
    assert (directory / "current" / "svid.pem").read_bytes() == b"of somebody"
    assert generations(directory) == set()


def test_current_that_is_a_file_gives_way(
    directory: Path, files: CertFiles, first: FilePlan
) -> None:
    directory.mkdir()
    (directory / "current").write_bytes(b"of somebody")
    files.publish(first)
    assert_published(directory, first)


@pytest.mark.parametrize("name", ["generation-0", "generation-7"])
@pytest.mark.parametrize("kind", ["file", "link", "directory of somebody"])
def test_what_cannot_be_removed_does_not_keep_a_rotation_from_being_published(
    directory: Path, files: CertFiles, first: FilePlan, second: FilePlan, name: str, kind: str
) -> None:
    files.publish(first)
    if kind == "file":
        (directory / name).write_bytes(b"not ours")
    elif kind == "link":
        (directory / name).symlink_to("generation-1")
    else:
        (directory / name / "svid.pem").mkdir(parents=True)
    assert files.publish(second) is not None
    assert_published(directory, second)


# Other writers.


def test_second_writer_of_this_process_is_told_too(
    directory: Path, files: CertFiles, open_files: OpenFiles, first: FilePlan, second: FilePlan
) -> None:
    files.publish(first)
    other = open_files(directory)
    for act in (lambda: other.publish(second), lambda: other.replace(token(1))):
        refused(act, "another process", str(directory), "directory of its own")
    assert_published(directory, first)
    files.close()
    assert other.publish(second) is not None
    refused(lambda: files.publish(first), "another process")
    assert_published(directory, second)


@needs_root
def test_lock_of_who_cannot_write_there_keeps_nobody_out(
    open_folder: Path, open_files: OpenFiles, first: FilePlan, second: FilePlan
) -> None:
    """Everybody may open the directory, and a lock asks for no more."""
    certs = open_folder / "certs"
    files = open_files(certs)
    files.publish(first)
    files.close()
    with holding("nobody", certs):
        assert files.publish(second) is not None
        assert files.replace(token(1))
    assert_published(certs, second)


def test_closing_twice_and_writing_again_is_fine(
    directory: Path, files: CertFiles, first: FilePlan
) -> None:
    files.close()
    files.publish(first)
    files.close()
    files.close()
    assert files.publish(first) is None
    assert_published(directory, first)


def test_writer_that_was_killed_leaves_the_directory_free(directory: Path) -> None:
    directory.mkdir()
    publisher = MortalPublisher(directory)
    try:
        for _ in range(3):
            os.kill(publisher.start(), 9)
            assert publisher.wait() == -9
            assert as_user(None, "publish-once", directory)["name"]
    finally:
        publisher.close()


def _flock_that_fails(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(handle: int, operation: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize(
    "code",
    # EBADF: NFS, for an exclusive lock on what is not open for writing.
    [errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF],
    ids=lambda code: errno.errorcode[code],
)
@layouts
def test_file_system_without_locks_is_written_to_all_the_same(
    directory: Path,
    files: CertFiles,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    code: int,
) -> None:
    _flock_that_fails(monkeypatch, code)
    for planned in plans(2, layout):
        assert files.publish(planned) is not None
        assert files.publish(planned) is None
        assert_published(directory, planned)
    assert files.replace(token(1))


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE], ids=lambda code: errno.errorcode[code])
def test_lock_that_fails_otherwise_is_an_error(
    directory: Path,
    files: CertFiles,
    first: FilePlan,
    second: FilePlan,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    files.publish(first)
    files.close()
    before = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patched:
        _flock_that_fails(patched, code)
        for _ in range(3):
            refused(lambda: files.publish(second), code, str(directory))
    assert len(os.listdir("/dev/fd")) == before
    assert_published(directory, first)
    files.publish(second)
    assert_published(directory, second)


def test_refusals_leave_no_descriptor_open(
    directory: Path, files: CertFiles, open_files: OpenFiles, first: FilePlan, second: FilePlan
) -> None:
    files.publish(first)
    other = open_files(directory)
    (directory / "tls.crt").unlink()
    (directory / "tls.crt").mkdir()
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        refused(lambda: other.publish(second))
        refused(lambda: files.publish(second))
    assert len(os.listdir("/dev/fd")) == before
    assert content(first) != content(second)
