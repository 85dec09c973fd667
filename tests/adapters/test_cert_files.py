"""The disk: what is published is whole, a pair, private, and all of it in every layout."""

from __future__ import annotations

import fcntl
import os
import pwd
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.adapters.cert_files import CertFiles, sync_to_disk
from sidecar.core.errors import CertFilesError
from sidecar.core.file_plan import FilePlan, PlannedFile
from tests.adapters.accounts import GROUP, OWNER, needs_root
from tests.adapters.disk import (
    assert_published,
    generations,
    links,
    make_old,
    mode_of,
    owner_of,
    shown,
    snapshot,
)
from tests.adapters.file_observers import NEW_FILE
from tests.adapters.file_processes import as_user
from tests.ca import Authority
from tests.plans import JWT, LAYOUTS, content, modes, plan, plans, token

OpenFiles = Callable[..., CertFiles]
layouts = pytest.mark.parametrize("layout", LAYOUTS)
NAMES = ("svid.pem", "svid_key.pem", "svid_bundle.pem")


@pytest.fixture
def first(authority: Authority) -> FilePlan:
    return plan(authority)


@pytest.fixture
def second(authority: Authority) -> FilePlan:
    return plan(authority)


@pytest.fixture(scope="module")
def nobody() -> tuple[int, int]:
    """The account without rights that every system has, and its group."""
    account = pwd.getpwnam("nobody")
    return account.pw_uid, account.pw_gid


# What is published.


@layouts
def test_plain_paths_lead_to_what_was_planned(
    directory: Path, files: CertFiles, layout: str
) -> None:
    (planned,) = plans(1, layout)
    assert files.publish(planned) == "generation-1"
    assert_published(directory, planned)
    assert os.readlink(directory / "current") == "generation-1"
    assert shown(directory) == {"current", "generation-1", *content(planned)}


@layouts
def test_next_generation_replaces_all_files_at_once(
    directory: Path, files: CertFiles, layout: str
) -> None:
    first, second = plans(2, layout)
    assert [files.publish(one) for one in (first, second)] == ["generation-1", "generation-2"]
    assert_published(directory, second)


def test_directory_may_be_moved_as_a_whole(
    directory: Path, files: CertFiles, first: FilePlan, tmp_path: Path
) -> None:
    files.publish(first)
    assert_published(directory.rename(tmp_path / "elsewhere"), first)


def test_missing_directories_are_made(
    tmp_path: Path, open_files: OpenFiles, first: FilePlan
) -> None:
    deep = tmp_path / "a" / "b" / "certs"
    open_files(deep).publish(first)
    assert_published(deep, first)


# Links of before.


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS)
def test_links_of_a_layout_that_is_no_longer_configured_vanish(
    directory: Path, files: CertFiles, authority: Authority, before: str, after: str
) -> None:
    svid, partner = authority.svid(), Authority("partner.example")
    old, new = (plan(authority, partner, svid=svid, **LAYOUTS[one]) for one in (before, after))
    files.publish(old)
    name = files.publish(new)
    assert (name is None) == (content(old) == content(new) and modes(old) == modes(new))
    assert_published(directory, new)


def test_links_of_others_stay(directory: Path, files: CertFiles, first: FilePlan) -> None:
    directory.mkdir()
    targets = {
        "latest": "current",
        "tls.crt": "current/svid.pem",
        "ca.crt": "../ca.crt",
        "tls.key": "elsewhere/tls.key",
        "old": "generation-1",
    }
    for name, target in targets.items():
        (directory / name).symlink_to(target)
    files.publish(first)
    assert {name: os.readlink(directory / name) for name in targets} == targets


def test_federated_bundle_that_is_gone_vanishes(
    directory: Path, files: CertFiles, authority: Authority, foreign: Authority
) -> None:
    svid, partner = authority.svid(), Authority("partner.example")
    for others in ((foreign, partner), (partner,), (), (foreign,)):
        planned = plan(authority, *others, svid=svid, federated_bundles=True)
        assert files.publish(planned) is not None
        assert_published(directory, planned)
        federated = {f"svid_bundle.{one.trust_domain}.pem" for one in others}
        assert set(links(directory)) == {*NAMES, *federated}


def test_link_that_is_stale_though_nothing_changed_vanishes(
    directory: Path, files: CertFiles, first: FilePlan
) -> None:
    """A process of before died after its publication and before it had mended the links."""
    files.publish(first)
    (directory / "tls.crt").symlink_to("current/tls.crt")
    assert files.publish(first) is None
    assert_published(directory, first)


# Single files.


def test_single_file_is_put_beside_the_generations(
    directory: Path, files: CertFiles, first: FilePlan
) -> None:
    files.publish(first)
    assert files.replace(token(1))
    assert (directory / JWT).read_bytes() == token(1).content
    assert mode_of(directory / JWT) == token(1).mode
    assert_published(directory, first)
    assert files.replace(token(2))
    assert (directory / JWT).read_bytes() == token(2).content


def test_single_file_needs_no_generation(directory: Path, files: CertFiles) -> None:
    assert files.replace(token(1))
    assert shown(directory) == {JWT}


def test_same_single_file_again_is_not_written(directory: Path, files: CertFiles) -> None:
    files.replace(token(1))
    before = snapshot(directory)
    assert not files.replace(token(1))
    assert snapshot(directory) == before


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_bytes(b"tampered"), id="content"),
        pytest.param(lambda path: path.chmod(0o666), id="mode"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(
            lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")), id="a link"
        ),
        pytest.param(lambda path: os.chown(path, 65534, -1), id="owner", marks=[needs_root]),
    ],
)
def test_single_file_that_was_tampered_with_is_written_anew(
    directory: Path, files: CertFiles, spoil: Callable[[Path], object]
) -> None:
    files.replace(token(1))
    spoil(directory / JWT)
    assert files.replace(token(1))
    assert not (directory / JWT).is_symlink()
    assert (directory / JWT).read_bytes() == token(1).content
    assert mode_of(directory / JWT) == token(1).mode
    assert owner_of(directory / JWT)[0] == os.geteuid()


def test_single_file_replaces_the_link_of_a_layout_of_before(
    directory: Path, files: CertFiles, authority: Authority
) -> None:
    svid = authority.svid()
    files.publish(plan(authority, svid=svid, bundle=JWT))
    files.publish(plan(authority, svid=svid))
    assert files.replace(token(1))
    assert (directory / JWT).read_bytes() == token(1).content
    assert_published(directory, plan(authority, svid=svid))


def test_single_file_stays_when_generations_follow(directory: Path, files: CertFiles) -> None:
    files.replace(token(1))
    for one in plans(3, "richest"):
        files.publish(one)
        assert (directory / JWT).read_bytes() == token(1).content


def test_single_file_that_is_no_longer_wanted_can_be_removed(
    directory: Path, files: CertFiles, first: FilePlan
) -> None:
    files.publish(first)
    files.replace(token(1))
    assert files.remove(JWT)
    assert_published(directory, first)
    assert shown(directory) == {"current", "generation-1", *content(first)}
    before = snapshot(directory)
    assert not files.remove(JWT)
    assert snapshot(directory) == before


def test_links_of_generations_are_not_removed(
    directory: Path, files: CertFiles, first: FilePlan, tmp_path: Path
) -> None:
    files.publish(first)
    (directory / "link").symlink_to(tmp_path)
    for name in (*content(first), "current", "link"):
        assert not files.remove(name)
    assert_published(directory, first)
    assert (directory / "link").is_symlink()


# Who may read it.


@pytest.mark.parametrize(
    "mask", [0o000, 0o022, 0o077, pytest.param(0o777, marks=[needs_root])], ids=oct
)
@layouts
def test_modes_do_not_depend_on_the_umask(
    directory: Path,
    files: CertFiles,
    umask: Callable[[int], int],
    layout: str,
    mask: int,
) -> None:
    (planned,) = plans(1, layout)
    umask(mask)
    files.publish(planned)
    files.replace(token(1))
    assert mode_of(directory) == 0o755
    assert mode_of(directory / "generation-1") == 0o755  # its certificate is for everybody
    for name, mode in modes(planned).items():
        assert mode_of(directory / "generation-1" / name) == mode
    assert mode_of(directory / JWT) == token(1).mode


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077], ids=oct)
def test_directories_that_are_made_can_be_entered_and_not_written_by_others(
    tmp_path: Path,
    open_files: OpenFiles,
    first: FilePlan,
    umask: Callable[[int], int],
    mask: int,
) -> None:
    """Whoever can write to a folder above ours can put another one in its place."""
    deep = tmp_path / "a" / "b" / "certs"
    umask(mask)
    open_files(deep).publish(first)
    for made in (deep, deep.parent, deep.parent.parent):
        assert mode_of(made) == 0o755, f"{made} {mode_of(made):o}"


def test_directories_that_are_there_keep_their_modes(
    directory: Path, files: CertFiles, first: FilePlan
) -> None:
    directory.mkdir(mode=0o700)
    directory.parent.chmod(0o750)
    files.publish(first)
    assert [mode_of(one) for one in (directory, directory.parent)] == [0o700, 0o750]


@pytest.mark.parametrize(("public", "secret"), [(0o600, 0o400), (0o640, 0o640)])
@layouts
def test_modes_may_be_chosen(
    directory: Path,
    files: CertFiles,
    authority: Authority,
    layout: str,
    public: int,
    secret: int,
) -> None:
    keys = LAYOUTS[layout] | {"certificate_mode": public, "key_mode": secret}
    planned = plan(authority, **keys)
    files.publish(planned)
    for name, mode in modes(planned).items():
        assert mode_of(directory / "current" / name) == mode
    assert_published(directory, planned)


@pytest.mark.parametrize(
    ("certificate", "key", "folder"),
    [
        pytest.param(0o600, 0o600, 0o700, id="nobody else reads"),
        pytest.param(0o640, 0o600, 0o750, id="the group reads the certificate"),
        pytest.param(0o640, 0o640, 0o750, id="the group reads both"),
        pytest.param(0o600, 0o640, 0o750, id="the group reads the key"),
        pytest.param(0o644, 0o600, 0o755, id="everybody reads the certificate"),
    ],
)
def test_generation_opens_for_those_who_may_read_a_file_of_it(
    directory: Path, files: CertFiles, authority: Authority, certificate: int, key: int, folder: int
) -> None:
    name = files.publish(plan(authority, certificate_mode=certificate, key_mode=key))
    assert name is not None
    assert mode_of(directory / name) == folder


@needs_root
@layouts
def test_files_belong_to_owner_and_group_and_the_folder_to_us(
    directory: Path, open_files: OpenFiles, nobody: tuple[int, int], layout: str
) -> None:
    """Whose the folder is can put other files into it."""
    (planned,) = plans(1, layout)
    files = open_files(directory, **OWNER, **GROUP)
    files.publish(planned)
    files.replace(token(1))
    for path in [directory / JWT, *(directory / "generation-1").iterdir()]:
        assert owner_of(path) == nobody
    assert owner_of(directory)[0] == owner_of(directory / "generation-1")[0] == 0
    assert not mode_of(directory / "generation-1") & 0o022
    assert_published(directory, planned)


@needs_root
@pytest.mark.parametrize(
    ("whose", "gives"),
    [
        pytest.param(OWNER, (True, False), id="owner alone"),
        pytest.param(GROUP, (False, True), id="group alone"),
    ],
)
def test_owner_and_group_are_given_apart(
    directory: Path,
    open_files: OpenFiles,
    nobody: tuple[int, int],
    first: FilePlan,
    whose: dict[str, str],
    gives: tuple[bool, bool],
) -> None:
    directory.mkdir()
    files = open_files(directory, **whose)
    files.publish(first)
    files.replace(token(1))
    ours = owner_of(directory)
    wanted = tuple(
        theirs if given else own for theirs, own, given in zip(nobody, ours, gives, strict=True)
    )
    assert owner_of(directory / "current" / "svid_key.pem") == wanted
    assert owner_of(directory / JWT) == wanted


@needs_root
@pytest.mark.parametrize("mask", [0o022, 0o077], ids=oct)
@layouts
def test_owner_can_read_its_files_whatever_the_umask(
    open_folder: Path,
    open_files: OpenFiles,
    umask: Callable[[int], int],
    mask: int,
    layout: str,
) -> None:
    (planned,) = plans(1, layout)
    umask(mask)
    certs = open_folder / "a" / "certs"
    files = open_files(certs, **OWNER)
    files.publish(replace(planned, files=tuple(replace(one, mode=0o600) for one in planned.files)))
    files.replace(token(1))
    wanted = {name: len(pem) for name, pem in content(planned).items()} | {JWT: 4108}
    assert as_user("nobody", "read-once", certs, names=sorted(wanted)) == wanted


@needs_root
def test_group_can_read_what_is_for_it(
    open_folder: Path, open_files: OpenFiles, umask: Callable[[int], int]
) -> None:
    """The generation belongs to our own group, and yet theirs gets in."""
    (planned,) = plans(1, "own-names")
    files = tuple(replace(one, mode=0o640) for one in planned.files)
    umask(0o077)
    certs = open_folder / "certs"
    theirs = open_files(certs, **GROUP)
    theirs.publish(replace(planned, files=files))
    theirs.replace(token(1))
    wanted = {name: len(pem) for name, pem in content(planned).items()} | {JWT: 4108}
    assert as_user("nobody", "read-once", certs, names=sorted(wanted)) == wanted


@needs_root
def test_others_can_read_certificates_and_no_keys(
    open_folder: Path, open_files: OpenFiles, umask: Callable[[int], int]
) -> None:
    (planned,) = plans(1, "richest")
    umask(0o000)
    certs = open_folder / "certs"
    files = open_files(certs)
    files.publish(planned)
    files.replace(token(1))
    found = as_user("nobody", "read-once", certs, names=[*content(planned), JWT])
    assert {name for name, result in found.items() if result == "EACCES"} == {
        "tls.key",
        "both.pem",
        JWT,
    }
    assert found["tls.crt"] == len(content(planned)["tls.crt"])


@needs_root
def test_other_owner_is_a_change_and_no_owner_is_us(
    directory: Path, open_files: OpenFiles, nobody: tuple[int, int], first: FilePlan
) -> None:
    whose: list[dict[str, str]] = [{}, OWNER, {}]
    for number, keys in enumerate(whose, start=1):
        files = open_files(directory, **keys)
        assert files.publish(first) == f"generation-{number}"
        assert files.publish(first) is None
        assert files.replace(token(1))
        assert not files.replace(token(1))
        files.close()
        uid = nobody[0] if keys else os.geteuid()
        for path in (directory / JWT, directory / "current" / "svid_key.pem"):
            assert owner_of(path)[0] == uid


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o775, 0o1777], ids=oct)
def test_directory_that_others_can_write_to_is_refused(
    directory: Path, files: CertFiles, first: FilePlan, mode: int
) -> None:
    directory.mkdir()
    directory.chmod(mode)
    for act in (lambda: files.publish(first), lambda: files.replace(token(1))):
        with pytest.raises(CertFilesError, match="others cannot write") as caught:
            act()
        assert f"chmod go-w {directory}" in (caught.value.hint or "")
    assert os.listdir(directory) == []


@needs_root
def test_directory_of_somebody_else_is_refused(
    directory: Path, files: CertFiles, first: FilePlan, nobody: tuple[int, int]
) -> None:
    directory.mkdir(mode=0o755)
    os.chown(directory, *nobody)
    with pytest.raises(CertFilesError, match=f"belongs to uid {nobody[0]}") as caught:
        files.publish(first)
    assert "chown" in (caught.value.hint or "")
    assert os.listdir(directory) == []


# Nothing changed means nothing written.


@layouts
def test_the_same_again_writes_nothing(directory: Path, open_files: OpenFiles, layout: str) -> None:
    (planned,) = plans(1, layout)
    files = open_files(directory)
    files.publish(planned)
    before = snapshot(directory)
    assert files.publish(planned) is None
    files.close()
    assert open_files(directory).publish(planned) is None  # nor does the next process
    assert snapshot(directory) == before


def _owned_by_nobody(path: Path) -> None:
    os.chown(path, 65534, -1)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_bytes(b"tampered"), id="content"),
        pytest.param(lambda path: path.chmod(0o666), id="mode"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: (path.unlink(), path.symlink_to("/dev/null")), id="a link"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a directory"),
        pytest.param(_owned_by_nobody, id="owner", marks=[needs_root]),
    ],
)
@layouts
def test_generation_that_was_tampered_with_is_published_anew(
    directory: Path, files: CertFiles, layout: str, spoil: Callable[[Path], object]
) -> None:
    (planned,) = plans(1, layout)
    files.publish(planned)
    for number, name in enumerate(content(planned), start=2):
        spoil(directory / "current" / name)
        assert files.publish(planned) == f"generation-{number}"
        assert_published(directory, planned)
        for other, mode in modes(planned).items():
            assert mode_of(directory / "current" / other) == mode


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda folder: folder.chmod(0o777), id="others may write"),
        pytest.param(lambda folder: (folder / "x").write_bytes(b""), id="a file too many"),
    ],
)
def test_folder_of_a_generation_that_was_tampered_with_is_published_anew(
    directory: Path, files: CertFiles, first: FilePlan, spoil: Callable[[Path], object]
) -> None:
    files.publish(first)
    spoil(directory / "current")
    assert files.publish(first) == "generation-2"
    assert_published(directory, first)
    assert mode_of(directory / "generation-2") == 0o755


@pytest.mark.parametrize(
    "keys", [{"key_mode": 0o640}, {"certificate_mode": 0o640}, {"combined": "both.pem"}], ids=str
)
def test_other_configuration_is_a_change(
    directory: Path, files: CertFiles, authority: Authority, keys: dict[str, Any]
) -> None:
    svid = authority.svid()
    files.publish(plan(authority, svid=svid))
    other = plan(authority, svid=svid, **keys)
    assert files.publish(other) == "generation-2"
    assert_published(directory, other)


# What was there before.


def test_regular_files_of_another_helper_give_way_to_links(
    directory: Path, files: CertFiles, first: FilePlan
) -> None:
    directory.mkdir()
    for name in NAMES:
        (directory / name).write_bytes(b"of spiffe-helper")
    (directory / "unrelated.txt").write_bytes(b"stays")
    files.publish(first)
    assert_published(directory, first)
    assert (directory / "unrelated.txt").read_bytes() == b"stays"


def test_links_to_elsewhere_give_way_and_their_targets_stay(
    directory: Path, files: CertFiles, first: FilePlan, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.pem"
    elsewhere.write_bytes(b"stays")
    directory.mkdir()
    for name in (*NAMES, JWT):
        (directory / name).symlink_to(elsewhere)
    files.publish(first)
    files.replace(token(1))
    assert_published(directory, first)
    assert elsewhere.read_bytes() == b"stays"


@layouts
def test_plain_path_that_went_away_is_mended_without_a_new_generation(
    directory: Path, files: CertFiles, layout: str
) -> None:
    (planned,) = plans(1, layout)
    files.publish(planned)
    for name in content(planned):
        (directory / name).unlink()
        assert files.publish(planned) is None
        assert_published(directory, planned)


@pytest.mark.parametrize("changed", [False, True])
def test_leftovers_of_a_crash_are_removed(
    directory: Path, files: CertFiles, first: FilePlan, second: FilePlan, changed: bool
) -> None:
    files.publish(first)
    staged = directory / "generation-2"
    staged.mkdir(mode=0o700)
    (staged / "svid_key.pem").write_bytes(b"half a k")
    (directory / ".new-link").symlink_to("generation-2")
    (directory / NEW_FILE).write_bytes(b"half a token")
    files.publish(second if changed else first)
    assert_published(directory, second if changed else first)
    assert len(generations(directory)) == 1 + changed
    assert not os.path.lexists(directory / ".new-link")
    assert not os.path.lexists(directory / NEW_FILE)


def test_leftover_of_a_crash_is_not_what_a_single_file_becomes(
    directory: Path, files: CertFiles, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"stays")
    directory.mkdir()
    (directory / NEW_FILE).symlink_to(elsewhere)
    assert files.replace(token(1))
    assert shown(directory) == {JWT}
    assert (directory / JWT).read_bytes() == token(1).content
    assert elsewhere.read_bytes() == b"stays"


@pytest.mark.parametrize("target", ["generation-7", "/nowhere", "../elsewhere", "current"])
def test_current_that_leads_nowhere_is_replaced(
    directory: Path, files: CertFiles, first: FilePlan, target: str
) -> None:
    directory.mkdir()
    (directory / "current").symlink_to(target)
    files.publish(first)
    assert_published(directory, first)


# Late readers.


@layouts
def test_previous_generation_can_be_read_after_the_next_is_published(
    directory: Path, files: CertFiles, layout: str
) -> None:
    first, second = plans(2, layout)
    name = files.publish(first)
    assert name is not None
    make_old(directory)
    folder = os.open(directory / "current", os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.publish(second)
        for file in first.files:
            with open(os.open(file.name, os.O_RDONLY, dir_fd=folder), "rb") as stream:
                assert stream.read() == file.content
    finally:
        os.close(folder)
    assert (directory / name / first.certificate).read_bytes() == content(first)[first.certificate]


def test_generation_that_was_current_until_just_now_is_kept_for_late_readers(
    directory: Path, files: CertFiles
) -> None:
    """It served for an hour; then the agent sends two updates at once (bundle, then SVID)."""
    some = plans(3)
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


def test_previous_generation_stays_until_there_is_a_newer_one(
    directory: Path, files: CertFiles
) -> None:
    first, second = plans(2)
    files.publish(first)
    files.publish(second)
    make_old(directory)
    for _ in range(2):
        assert files.publish(second) is None
        assert generations(directory) == {"generation-1", "generation-2"}


def test_generations_that_nobody_looks_for_are_removed(directory: Path, files: CertFiles) -> None:
    some = plans(6)
    for one in some[:4]:
        files.publish(one)
    make_old(directory)
    previous = files.publish(some[4])
    assert previous is not None
    make_old(directory)
    current = files.publish(some[5])
    assert generations(directory) == {previous, current}


# What is published is proven first.


def _with_key(planned: FilePlan, key: bytes) -> FilePlan:
    changed = tuple(
        PlannedFile(one.name, one.mode, key) if one.name == planned.private_key else one
        for one in planned.files
    )
    return replace(planned, files=changed)


def _with_key_of(planned: FilePlan, other: FilePlan) -> FilePlan:
    return _with_key(planned, content(other)[other.private_key])


@layouts
def test_key_of_another_certificate_is_never_published(
    directory: Path, files: CertFiles, layout: str
) -> None:
    first, second = plans(2, layout)
    files.publish(first)
    with pytest.raises(CertFilesError, match="do not belong together"):
        files.publish(_with_key_of(first, second))
    assert_published(directory, first)
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
    directory: Path, files: CertFiles, first: FilePlan, key: bytes
) -> None:
    files.publish(first)
    with pytest.raises(CertFilesError, match="cannot be read back"):
        files.publish(_with_key(first, key))
    assert_published(directory, first)
    assert generations(directory) == {"generation-1"}


def test_errors_hold_nothing_of_the_key(
    files: CertFiles, first: FilePlan, second: FilePlan
) -> None:
    with pytest.raises(CertFilesError) as caught:
        files.publish(_with_key_of(first, second))
    shown = repr(caught.value) + str(caught.value) + repr(first)
    assert "PRIVATE" not in shown
    assert content(second)["svid_key.pem"].decode().splitlines()[1] not in shown


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
