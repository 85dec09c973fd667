"""The disk: what is published is whole, a pair, private, and stays when something fails."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sidecar.adapters.cert_files import CertFiles, sync_to_disk
from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import FileModes, FileNames, FilePlan, PlannedFile, file_plan
from tests.adapters.file_processes import (
    MortalPublisher,
    observing,
    pair_matches,
    plans,
    read_generation,
)
from tests.ca import Authority

NAMES = ("svid.pem", "svid_key.pem", "svid_bundle.pem")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make this fault")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "certs"


@pytest.fixture
def plan(authority: Authority) -> FilePlan:
    return file_plan(authority.svid(), authority.bundle, FileNames(), FileModes())


@pytest.fixture
def next_plan(authority: Authority) -> FilePlan:
    return file_plan(authority.svid(), authority.bundle, FileNames(), FileModes())


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def small_disk(tmp_path: Path, closing: ExitStack) -> Callable[[str], Path]:
    """A file system of its own with little room; `options` as `mount` takes them."""

    def mount(options: str) -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no command mount")
        if done.returncode:
            pytest.skip(f"no tmpfs: {done.stderr.strip()}")
        closing.callback(subprocess.run, ["umount", "-l", str(place)], check=True)
        return place

    return mount


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def content(plan: FilePlan) -> dict[str, bytes]:
    return {file.name: file.content for file in plan.files}


def published(directory: Path) -> dict[str, bytes]:
    """What the plain paths lead to."""
    return {name: (directory / name).read_bytes() for name in NAMES}


def generations(directory: Path) -> set[str]:
    return {name for name in os.listdir(directory) if name.startswith("generation-")}


def make_old(directory: Path, *names: str) -> None:
    """As if an hour had passed since these were written."""
    for name in names or generations(directory):
        hour_ago = time.time() - 3600
        os.utime(directory / name, (hour_ago, hour_ago))


def snapshot(directory: Path) -> dict[str, tuple[int, int, int, int]]:
    """Everything below the directory, with what any write to it would change."""
    paths = [directory, *directory.rglob("*")]
    found = {}
    for path in paths:
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
    return found


# What is published.


def test_plain_paths_lead_to_what_was_planned(directory: Path, plan: FilePlan) -> None:
    assert CertFiles(directory).publish(plan) == "generation-1"
    assert published(directory) == content(plan)
    for name in NAMES:
        assert os.readlink(directory / name) == f"current/{name}"
    assert os.readlink(directory / "current") == "generation-1"


def test_next_generation_replaces_all_files_at_once(
    directory: Path, plan: FilePlan, next_plan: FilePlan
) -> None:
    files = CertFiles(directory)
    first, second = files.publish(plan), files.publish(next_plan)
    assert (first, second) == ("generation-1", "generation-2")
    assert published(directory) == content(next_plan)
    assert pair_matches(*read_generation(directory))


def test_directory_may_be_moved_as_a_whole(directory: Path, plan: FilePlan, tmp_path: Path) -> None:
    CertFiles(directory).publish(plan)
    moved = directory.rename(tmp_path / "elsewhere")
    assert published(moved) == content(plan)


def test_missing_directories_are_made(tmp_path: Path, plan: FilePlan) -> None:
    deep = tmp_path / "a" / "b" / "certs"
    CertFiles(deep).publish(plan)
    assert published(deep) == content(plan)


def test_other_file_names_are_linked_too(directory: Path, authority: Authority) -> None:
    names = FileNames("tls.crt", "tls.key", "ca.crt")
    plan = file_plan(authority.svid(), authority.bundle, names, FileModes())
    CertFiles(directory).publish(plan)
    for name, data in content(plan).items():
        assert (directory / name).read_bytes() == data


# Who may read it.


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(
    directory: Path, plan: FilePlan, umask: Callable[[int], int], mask: int
) -> None:
    directory.mkdir()
    umask(mask)
    CertFiles(directory).publish(plan)
    assert mode_of(directory / "generation-1") == 0o755  # its certificate is for everybody
    assert mode_of(directory / "generation-1" / "svid_key.pem") == 0o600
    assert mode_of(directory / "generation-1" / "svid.pem") == 0o644
    assert mode_of(directory / "generation-1" / "svid_bundle.pem") == 0o644


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_no_directory_that_is_made_can_be_written_by_others(
    tmp_path: Path, plan: FilePlan, umask: Callable[[int], int], mask: int
) -> None:
    """Whoever can write to a folder above ours can put another one in its place."""
    deep = tmp_path / "a" / "b" / "certs"
    umask(mask)
    CertFiles(deep).publish(plan)
    for made in (deep, deep.parent, deep.parent.parent):
        assert not mode_of(made) & 0o022, f"{made} {mode_of(made):o}"


@pytest.mark.parametrize("modes", [FileModes(0o600, 0o400), FileModes(0o640, 0o640)])
def test_modes_may_be_chosen(directory: Path, authority: Authority, modes: FileModes) -> None:
    plan = file_plan(authority.svid(), authority.bundle, FileNames(), modes)
    CertFiles(directory).publish(plan)
    assert mode_of(directory / "current" / "svid.pem") == modes.certificate
    assert mode_of(directory / "current" / "svid_key.pem") == modes.private_key
    assert published(directory) == content(plan)


def test_key_can_never_be_read_by_others_not_even_before_it_is_published(
    directory: Path, umask: Callable[[int], int]
) -> None:
    umask(0o000)
    files, some = CertFiles(directory), plans(10)
    files.publish(some[0])
    with observing("watch", directory) as watcher:
        for number in range(1, 401):
            files.publish(some[number % 10])
            make_old(directory)  # only few are kept, so that the watcher looks at the newest
    assert watcher.saw["keys"] > 200
    assert watcher.saw["empty"] > 0, "never looked while a key was being written"
    assert watcher.saw["wide"] == 0


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_directory_that_everybody_can_write_to_is_refused(
    directory: Path, plan: FilePlan, mode: int
) -> None:
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(CertFilesError, match="others cannot write") as caught:
        CertFiles(directory).publish(plan)
    assert "chmod" in (caught.value.hint or "")
    assert os.listdir(directory) == []


@needs_root
def test_directory_of_somebody_else_is_refused(directory: Path, plan: FilePlan) -> None:
    directory.mkdir(mode=0o755)
    os.chown(directory, 65534, 65534)
    with pytest.raises(CertFilesError, match="belongs to uid 65534") as caught:
        CertFiles(directory).publish(plan)
    assert "chown" in (caught.value.hint or "")
    assert os.listdir(directory) == []


# Nothing changed means nothing written.


def test_the_same_again_writes_nothing(directory: Path, plan: FilePlan) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    before = snapshot(directory)
    assert files.publish(plan) is None
    assert CertFiles(directory).publish(plan) is None  # nor does the next process
    assert snapshot(directory) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_bytes(b"tampered"), id="content"),
        pytest.param(lambda path: path.chmod(0o666), id="mode"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: (path.unlink(), path.symlink_to("/dev/null")), id="a link"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a directory"),
    ],
)
def test_generation_that_was_tampered_with_is_published_anew(
    directory: Path, plan: FilePlan, spoil: Callable[[Path], object], name: str
) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    spoil(directory / "current" / name)
    assert files.publish(plan) == "generation-2"
    assert published(directory) == content(plan)
    assert mode_of(directory / "current" / "svid_key.pem") == 0o600


def test_other_modes_are_a_change(directory: Path, authority: Authority) -> None:
    files, svid = CertFiles(directory), authority.svid()
    files.publish(file_plan(svid, authority.bundle, FileNames(), FileModes()))
    wider = file_plan(svid, authority.bundle, FileNames(), FileModes(0o644, 0o640))
    assert files.publish(wider) == "generation-2"
    assert mode_of(directory / "current" / "svid_key.pem") == 0o640


# What was there before.


def test_regular_files_of_another_helper_give_way_to_links(directory: Path, plan: FilePlan) -> None:
    directory.mkdir()
    for name in NAMES:
        (directory / name).write_bytes(b"of spiffe-helper")
    (directory / "unrelated.txt").write_bytes(b"stays")
    CertFiles(directory).publish(plan)
    assert published(directory) == content(plan)
    assert all((directory / name).is_symlink() for name in NAMES)
    assert (directory / "unrelated.txt").read_bytes() == b"stays"


def test_links_to_elsewhere_give_way_and_their_targets_stay(
    directory: Path, plan: FilePlan, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.pem"
    elsewhere.write_bytes(b"stays")
    directory.mkdir()
    for name in NAMES:
        (directory / name).symlink_to(elsewhere)
    CertFiles(directory).publish(plan)
    assert published(directory) == content(plan)
    assert elsewhere.read_bytes() == b"stays"


def test_plain_path_that_went_away_is_mended_without_a_new_generation(
    directory: Path, plan: FilePlan
) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    (directory / "svid.pem").unlink()
    assert files.publish(plan) is None
    assert published(directory) == content(plan)


def test_leftovers_of_a_crash_are_removed(
    directory: Path, plan: FilePlan, next_plan: FilePlan
) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    staged = directory / "generation-2"
    staged.mkdir(mode=0o700)
    (staged / "svid_key.pem").write_bytes(b"half a k")
    (directory / ".new-link").symlink_to("generation-2")
    name = files.publish(next_plan)
    assert generations(directory) == {"generation-1", name}
    assert published(directory) == content(next_plan)
    assert not os.path.lexists(directory / ".new-link")


def test_leftovers_of_a_crash_are_removed_even_if_nothing_changed(
    directory: Path, plan: FilePlan
) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    (directory / "generation-2").mkdir()
    assert files.publish(plan) is None
    assert generations(directory) == {"generation-1"}


@pytest.mark.parametrize("target", ["generation-7", "/nowhere", "../elsewhere", "current"])
def test_current_that_leads_nowhere_is_replaced(
    directory: Path, plan: FilePlan, target: str
) -> None:
    directory.mkdir()
    (directory / "current").symlink_to(target)
    CertFiles(directory).publish(plan)
    assert published(directory) == content(plan)


# Late readers.


def test_previous_generation_can_be_read_after_the_next_is_published(
    directory: Path, plan: FilePlan, next_plan: FilePlan
) -> None:
    files = CertFiles(directory)
    first = files.publish(plan)
    assert first is not None
    make_old(directory)
    folder = os.open(directory / "current", os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.publish(next_plan)
        with open(os.open("svid_key.pem", os.O_RDONLY, dir_fd=folder), "rb") as stream:
            assert stream.read() == content(plan)["svid_key.pem"]
    finally:
        os.close(folder)
    assert (directory / first / "svid.pem").read_bytes() == content(plan)["svid.pem"]


def test_generation_that_was_current_until_just_now_is_kept_for_late_readers(
    directory: Path,
) -> None:
    """It served for an hour; then the agent sends two updates at once (bundle, then SVID)."""
    files, some = CertFiles(directory), plans(3)
    served_for_long = files.publish(some[0])
    assert served_for_long is not None
    make_old(directory, served_for_long)
    folder = os.open(directory / "current", os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.publish(some[1])
        files.publish(some[2])
        with open(os.open("svid.pem", os.O_RDONLY, dir_fd=folder), "rb") as stream:
            assert stream.read() == content(some[0])["svid.pem"]
    finally:
        os.close(folder)


def test_generations_that_nobody_looks_for_are_removed(directory: Path) -> None:
    files, some = CertFiles(directory), plans(6)
    for one in some[:4]:
        files.publish(one)
    make_old(directory)
    previous = files.publish(some[4])
    assert previous is not None
    make_old(directory)
    current = files.publish(some[5])
    assert generations(directory) == {previous, current}


# Faults of the disk.


def assert_unharmed(directory: Path, plan: FilePlan) -> None:
    same = published(directory) == content(plan)
    assert same, "other files than those that were published"  # and no keys on the screen
    assert pair_matches(*read_generation(directory))


def fill(filler: Path) -> None:
    """Take the room that is left."""
    with open(filler, "wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"x" * 4096)


def test_full_disk_keeps_the_published_generation_and_recovers(
    small_disk: Callable[[str], Path], plan: FilePlan, next_plan: FilePlan
) -> None:
    disk = small_disk("size=256k")
    directory = disk / "certs"
    files = CertFiles(directory)
    files.publish(plan)
    filler = disk / "filler"
    fill(filler)
    for _ in range(3):
        with pytest.raises(CertFilesError, match="No space left") as caught:
            files.publish(next_plan)
        assert "disk full" in (caught.value.hint or "")
        assert_unharmed(directory, plan)
        assert generations(directory) == {"generation-1"}
    filler.unlink()
    assert files.publish(next_plan) is not None
    assert_unharmed(directory, next_plan)


@pytest.mark.parametrize("inodes", range(5, 20))
def test_disk_without_inodes_keeps_the_published_generation(
    small_disk: Callable[[str], Path], plan: FilePlan, next_plan: FilePlan, inodes: int
) -> None:
    """It may run out at any step, the link's included."""
    directory = small_disk(f"size=1m,nr_inodes={inodes}") / "certs"
    files = CertFiles(directory)
    try:
        files.publish(plan)
    except CertFilesError:
        return  # there was never room for one
    for _ in range(3):
        try:
            files.publish(next_plan)
        except CertFilesError:
            assert_unharmed(directory, plan)
            # What was staged in vain takes no room from the next attempt.
            assert generations(directory) == {"generation-1"}
        else:
            assert_unharmed(directory, next_plan)


def test_disk_filled_by_our_own_generations_is_emptied_of_them(
    small_disk: Callable[[str], Path],
) -> None:
    """Many rotations in a short time fill a small disk; later there is nothing left to keep."""
    directory = small_disk("size=128k") / "certs"
    files, some = CertFiles(directory), plans(20)

    def publish_all() -> None:
        for one in some:
            files.publish(one)

    with pytest.raises(CertFilesError, match="No space left"):
        publish_all()
    make_old(directory)
    assert files.publish(some[-1]) is not None
    assert_unharmed(directory, some[-1])


def test_read_only_disk_keeps_the_published_generation_and_recovers(
    small_disk: Callable[[str], Path], plan: FilePlan, next_plan: FilePlan
) -> None:
    disk = small_disk("size=1m")
    directory = disk / "certs"
    files = CertFiles(directory)
    files.publish(plan)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(CertFilesError, match="Read-only") as caught:
        files.publish(next_plan)
    assert caught.value.hint
    assert_unharmed(directory, plan)
    assert files.publish(plan) is None  # nothing to write is no fault
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    files.publish(next_plan)
    assert_unharmed(directory, next_plan)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_keeps_the_published_generation(
    directory: Path, plan: FilePlan, next_plan: FilePlan
) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    directory.chmod(0o555)
    try:
        with pytest.raises(CertFilesError, match="Permission denied"):
            files.publish(next_plan)
        assert_unharmed(directory, plan)
    finally:
        directory.chmod(0o755)


@pytest.mark.parametrize("name", ["generation-0", "generation-7"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_cannot_be_removed_does_not_keep_a_rotation_from_being_published(
    directory: Path, plan: FilePlan, next_plan: FilePlan, name: str, kind: str
) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    if kind == "file":
        (directory / name).write_bytes(b"not ours")
    else:
        (directory / name).symlink_to("generation-1")
    with suppress(CertFilesError):  # to say so is fine
        files.publish(next_plan)
    assert_unharmed(directory, next_plan)


def test_directory_that_is_a_file_is_an_error_and_stays(directory: Path, plan: FilePlan) -> None:
    directory.write_bytes(b"a file")
    with pytest.raises(CertFilesError, match=str(directory)):
        CertFiles(directory).publish(plan)
    assert directory.read_bytes() == b"a file"
    with pytest.raises(CertFilesError):
        CertFiles(directory / "below").publish(plan)


def test_current_that_is_a_directory_is_an_error_and_stays(directory: Path, plan: FilePlan) -> None:
    (directory / "current").mkdir(parents=True)
    (directory / "current" / "svid.pem").write_bytes(b"of somebody")
    with pytest.raises(CertFilesError):
        CertFiles(directory).publish(plan)
    assert (directory / "current" / "svid.pem").read_bytes() == b"of somebody"


# What is published is proven first.


def _with_other_key(plan: FilePlan, other: FilePlan) -> FilePlan:
    return _with_key(plan, content(other)["svid_key.pem"])


def _with_key(plan: FilePlan, key: bytes) -> FilePlan:
    changed = tuple(
        PlannedFile(one.name, one.mode, key) if one.name == plan.private_key else one
        for one in plan.files
    )
    return replace(plan, files=changed)


def test_key_of_another_certificate_is_never_published(
    directory: Path, plan: FilePlan, next_plan: FilePlan
) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    with pytest.raises(CertFilesError, match="do not belong together"):
        files.publish(_with_other_key(plan, next_plan))
    assert_unharmed(directory, plan)
    assert generations(directory) == {"generation-1"}


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"garbage", id="garbage"),
        pytest.param(
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", id="no key"
        ),
    ],
)
def test_key_that_cannot_be_read_back_is_never_published(
    directory: Path, plan: FilePlan, key: bytes
) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    with pytest.raises(CertFilesError, match="cannot be read back"):
        files.publish(_with_key(plan, key))
    assert_unharmed(directory, plan)
    assert generations(directory) == {"generation-1"}


def test_errors_hold_nothing_of_the_key(
    directory: Path, plan: FilePlan, next_plan: FilePlan
) -> None:
    with pytest.raises(CertFilesError) as caught:
        CertFiles(directory).publish(_with_other_key(plan, next_plan))
    shown = repr(caught.value) + str(caught.value) + repr(plan)
    assert "PRIVATE" not in shown
    assert content(next_plan)["svid_key.pem"].decode().splitlines()[1] not in shown


# Other processes.


def test_reader_that_opens_current_once_never_sees_a_mismatch(directory: Path) -> None:
    files, some = CertFiles(directory), plans(20)
    files.publish(some[0])
    with (
        observing("read", directory) as careful,
        observing("read-plain", directory) as careless,
    ):
        for number in range(1, 301):
            assert files.publish(some[number % 20]) is not None
    assert careful.saw["match"] > 50
    assert set(careful.saw) == {"match"}
    # Two opens by two plain paths cannot be one step; how often that shows is worth knowing.
    print(f"readers of the plain paths saw {careless.saw}")


def test_publisher_killed_at_any_moment_leaves_a_valid_pair(
    directory: Path, plan: FilePlan, next_plan: FilePlan
) -> None:
    directory.mkdir()
    publisher = MortalPublisher(directory)
    files = CertFiles(directory)
    files.publish(plan)
    leftovers = 0
    try:
        for number in range(50):
            mortal = publisher.start()
            time.sleep(random.uniform(0, 0.02))  # not to wait for anything: the moment of death
            os.kill(mortal, signal.SIGKILL)
            assert publisher.wait() == -signal.SIGKILL
            assert pair_matches(*read_generation(directory))
            assert pair_matches(
                (directory / "svid.pem").read_bytes(), (directory / "svid_key.pem").read_bytes()
            )
            current = os.readlink(directory / "current")
            numbers = {int(name.removeprefix("generation-")) for name in generations(directory)}
            leftovers += max(numbers) > int(current.removeprefix("generation-"))
            assert files.publish(plan if number % 2 else next_plan) is not None
            assert_unharmed(directory, plan if number % 2 else next_plan)
            assert not os.path.lexists(directory / ".new-link")
    finally:
        publisher.close()
    print(f"{leftovers} of 50 died with a generation staged")
    assert leftovers > 0, "none was killed while it staged"
    assert max(numbers) > 1, "none of them published anything"


def test_directory_removed_by_somebody_is_made_again(directory: Path, plan: FilePlan) -> None:
    files = CertFiles(directory)
    files.publish(plan)
    shutil.rmtree(directory)
    assert files.publish(plan) == "generation-1"
    assert published(directory) == content(plan)


# Writes that last.


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_macos_is_asked_for_its_full_sync(handle: int) -> None:
    # On macOS the number is F_FULLFSYNC's; here it is one that this system knows.
    synced: list[int] = []
    sync_to_disk(handle, SimpleNamespace(F_FULLFSYNC=fcntl.F_GETFL), synced.append)
    assert synced == []


def test_file_system_without_full_sync_gets_the_plain_one(handle: int) -> None:
    synced: list[int] = []
    sync_to_disk(handle, SimpleNamespace(F_FULLFSYNC=0x7FFF), synced.append)
    assert synced == [handle]


def test_linux_gets_the_plain_sync(handle: int) -> None:
    synced: list[int] = []
    sync_to_disk(handle, SimpleNamespace(), synced.append)
    assert synced == [handle]


def test_sync_that_fails_is_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_to_disk(writing)


@pytest.mark.parametrize(
    ("certificate", "key", "folder"),
    [
        pytest.param(0o600, 0o600, 0o700, id="nobody else reads"),
        pytest.param(0o640, 0o600, 0o750, id="the group reads the certificate"),
        pytest.param(0o640, 0o640, 0o750, id="the group reads both"),
        pytest.param(0o644, 0o600, 0o755, id="everybody reads the certificate"),
    ],
)
def test_generation_opens_for_those_who_may_read_a_file_of_it(
    directory: Path, plan: FilePlan, certificate: int, key: int, folder: int
) -> None:
    modes = {plan.certificate: certificate, plan.private_key: key}
    files = tuple(replace(file, mode=modes.get(file.name, certificate)) for file in plan.files)
    name = CertFiles(directory).publish(replace(plan, files=files))
    assert name is not None
    assert mode_of(directory / name) == folder
    assert mode_of(directory / name / plan.private_key) == key
